"""llama.cpp's own server, with prompts that our engine prefills and prunes."""
