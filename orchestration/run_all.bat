@echo off
rem Start everything. Flink and Kafka need Linux: this runs run_all.sh in WSL, where there is one.
where wsl.exe >nul 2>nul
if %errorlevel% equ 0 (
  wsl.exe --status >nul 2>nul
  if not errorlevel 1 (
    for /f "usebackq delims=" %%p in (`wsl.exe wslpath -a "%~dp0."`) do wsl.exe bash "%%p/run_all.sh" %*
    exit /b %errorlevel%
  )
)
echo flead: this needs Linux. Install WSL once with: wsl --install
echo        then run this again. Containers for Kafka alone: docker compose -f kafka\docker-compose.yml up
exit /b 1
