# Hands all parameters that changed in a frame to the extension at once, so that they leave as one bundle.


def onValuesChanged(changes):
    me.parent().ext.Sdbridge.ValuesChanged(changes)


def onPulse(par):
    me.parent().ext.Sdbridge.Pulse(par)
