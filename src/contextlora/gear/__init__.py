"""ContextGear: training over unequal devices joined by slow links.

devices -> workload -> cost -> plan -> schedule -> simulate       without torch
                               plan -> roles -> executor -> strategy; peers, profile
"""
