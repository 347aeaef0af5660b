"""Plans carried out by the processes of torch.distributed, with and without Lightning."""
