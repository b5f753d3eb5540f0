"""confreg: find and measure confidence-regulation neurons in language models."""
