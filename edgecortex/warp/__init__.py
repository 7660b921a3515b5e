"""Side agents: what they see, what they are asked, and what of it comes back."""
