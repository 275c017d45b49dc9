"""Parameters: the one table, the store that holds their values, fades, presets and cues."""
