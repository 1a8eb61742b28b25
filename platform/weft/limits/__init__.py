"""How much may be used: rates, running requests, storage and money, of whom, and who holds them."""
