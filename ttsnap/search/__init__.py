"""One search: its request, budget and prices, its candidates, their scores, the survivors and winners."""
