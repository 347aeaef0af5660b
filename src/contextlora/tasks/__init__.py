"""Task sets: what is asked, about which scenes, and in which words."""
