"""One search: what is asked, what it may cost, candidates denoised and scored, survivors and winners."""
