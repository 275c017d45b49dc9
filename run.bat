@echo off
rem Double-click: installs what is missing, then runs the demo. Arguments are those of scripts\run.py.
setlocal
rem The launcher's own choice may be a Python newer than sdbridge knows, so it is asked for those it does know.
for %%v in (3.12 3.13 3.11) do (
  py -%%v -c "" >nul 2>nul
  if not errorlevel 1 (
    set "SDBRIDGE_PYTHON=py -%%v"
    goto run
  )
)
rem Without the launcher: whatever python is; run.py says it if that one is too old or too new.
set "SDBRIDGE_PYTHON=python"
python -c "" >nul 2>nul
if not errorlevel 1 goto run
echo SDB-INSTALL-PYTHON: no Python answers. Install Python 3.12 from python.org and double-click again.
pause
exit /b 1

:run
%SDBRIDGE_PYTHON% "%~dp0scripts\run.py" %*
set "SDBRIDGE_ENDED=%errorlevel%"
if not "%SDBRIDGE_ENDED%"=="0" pause
exit /b %SDBRIDGE_ENDED%
