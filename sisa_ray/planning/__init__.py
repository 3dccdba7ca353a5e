"""What unlearning will cost, before anything is trained: equations, simulation, recommendations. Pure."""
