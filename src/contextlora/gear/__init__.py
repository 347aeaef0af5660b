"""ContextGear: training over unequal devices joined by slow links; what is here imports no torch.

devices -> workload -> cost -> plan -> schedule -> simulate
"""
