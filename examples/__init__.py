"""What the project is shown on: a real model, its evolution, a patch, and a study of the port."""
