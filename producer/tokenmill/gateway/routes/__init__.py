"""One router for each noun; app.py includes them."""
