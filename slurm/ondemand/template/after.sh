# Sourced by Open OnDemand while script.sh runs: the session is shown as ready when this ends.
# A large checkpoint takes a while to load.
echo "Waiting for umaserve to listen on ${host}:${port}..."
if wait_until_port_used "${host}:${port}" 600; then
    echo "umaserve listens on ${host}:${port}"
else
    echo "umaserve does not listen on ${host}:${port} after 10 minutes"
    # Ends the job, with the reason in its output.
    clean_up 1
fi
