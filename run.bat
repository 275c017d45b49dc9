@echo off
rem Double-click: installs what is missing, then runs the demo.
py -3 "%~dp0scripts\run.py" %*
if errorlevel 1 pause
