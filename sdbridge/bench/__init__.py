"""``sdbridge bench``: what each case measures, a file per area. Figures in docs/performance.md come from here."""
