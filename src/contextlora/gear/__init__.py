"""ContextGear: training over unequal devices joined by slow links.

planning     devices, workload -> cost -> plan -> roles      without torch
simulation   plan -> schedule -> simulate                    without torch
execution    roles -> executor -> strategy; peers, profile
"""
