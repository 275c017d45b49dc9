"""NDI: pictures to and from other programs and machines over the network.

NDI(R) is a registered trademark of Vizrt NDI AB, see https://ndi.video. The library itself comes
with the package ndi-python, which has its own licence; nothing of it is part of sdbridge.
"""
