"""Amortized posteriors: trained, asked, checked, refined, saved."""
