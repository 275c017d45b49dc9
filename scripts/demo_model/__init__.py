"""How the embedded model's training pictures are drawn and its networks trained."""
