"""Who may write parameters: OSC, OSCQuery, the page and HTTP, MIDI, DMX."""
