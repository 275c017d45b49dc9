# Calls the extension at the start of every frame. The extension never raises.


def onFrameStart(frame):
    me.parent().ext.Sdbridge.Frame()


def onExit():
    me.parent().ext.Sdbridge.Close()
