# Builds the component when it is dropped, pasted or opened. A frame later, because operators must not
# be made while TouchDesigner is still making this one.


def onCreate():
    me.parent().op("code").op("start").run(delayFrames=1)


def onStart():
    me.parent().op("code").op("start").run(delayFrames=1)
