"""What runs inside TouchDesigner: pure Python, standard library only, no ``td`` import at module level."""
