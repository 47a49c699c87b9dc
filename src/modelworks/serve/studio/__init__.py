"""The web page that serve shows: static files built from ui/."""
