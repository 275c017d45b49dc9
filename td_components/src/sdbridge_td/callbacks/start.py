# Run by the Execute DAT boot: makes or mends everything inside the component.
me.parent().op("loader").module.start(me.parent(2))
