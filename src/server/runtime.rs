//! The threads on which the server's tasks run, and signals. What is asynchronous ends here: the
//! rest of the program sees a handle.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{EngineSender, Health, Listener, ServerSettings, Tls, serve};

/// How long the sockets may take to say goodbye before the engine stops anyway: launchers kill
/// what is still there a second or so after SIGTERM, and recordings have to be closed by then.
const HEAD_START: Duration = Duration::from_millis(300);

/// Why the engine should stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// SIGINT: somebody wants the server to end. The sockets are closed already.
    Interrupted,
    /// SIGTERM or SIGUSR1: the server has to make room and may be started again. The engine says
    /// goodbye to the viewers.
    Draining,
    /// The listener has failed.
    Failed,
}

/// A server on threads of its own.
#[derive(Debug)]
pub struct RunningServer {
    thread: JoinHandle<io::Result<()>>,
    stop: watch::Sender<bool>,
}

impl RunningServer {
    /// Serves on `listeners` until SIGINT (a second one ends the process), SIGTERM or SIGUSR1, or
    /// until [`RunningServer::stop`]. `stopped` is called when the engine should stop: shortly
    /// after such a signal, or when the listener has failed.
    ///
    /// # Errors
    /// The listener, the threads or the signals cannot be used.
    pub fn start(
        listeners: Vec<Listener>,
        tls: Option<Tls>,
        to_engine: Arc<dyn EngineSender>,
        health: Arc<Health>,
        settings: ServerSettings,
        stopped: impl Fn(StopReason) + Send + Sync + 'static,
    ) -> io::Result<RunningServer> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(settings.threads.max(1))
            .thread_name("server")
            .enable_all()
            .build()?;
        let (stop, stopping) = watch::channel(false);
        let (mut interrupt, mut terminate, mut user) = {
            let _inside = runtime.enter();
            (
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                signal(SignalKind::user_defined1())?,
            )
        };
        let stopped = Arc::new(stopped);
        let on_signal = {
            let (stop, stopped) = (stop.clone(), stopped.clone());
            async move {
                let name = tokio::select! {
                    _ = interrupt.recv() => "SIGINT",
                    _ = terminate.recv() => "SIGTERM",
                    _ = user.recv() => "SIGUSR1",
                };
                if name == "SIGINT" {
                    tracing::info!("{name}: closing the sessions");
                    // Nobody listens any more if the server has ended by itself.
                    let _ = stop.send(true);
                    tokio::time::sleep(HEAD_START).await;
                    stopped(StopReason::Interrupted);
                } else {
                    tracing::info!("{name}: keeping the sessions");
                    stopped(StopReason::Draining);
                }
                // Launchers and batch systems repeat the others while a drain is under way.
                interrupt.recv().await;
                tracing::warn!("second signal: ending at once");
                std::process::exit(130);
            }
        };
        let thread = std::thread::Builder::new()
            .name("server-main".into())
            .spawn(move || {
                runtime.spawn(on_signal);
                let served = serve(listeners, tls, to_engine, health, settings, stopping);
                let result = runtime.block_on(served);
                if let Err(error) = &result {
                    tracing::error!(%error, "the server has failed");
                }
                stopped(StopReason::Failed);
                runtime.shutdown_timeout(Duration::from_secs(1));
                result
            })?;
        Ok(RunningServer { thread, stop })
    }

    /// Closes all sockets and waits for the server's end.
    ///
    /// # Errors
    /// The listener has failed.
    pub fn stop(self) -> io::Result<()> {
        // An error means that it has ended already.
        let _ = self.stop.send(true);
        self.thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the server thread has panicked")))
    }
}

/// Lets SIGINT, SIGTERM and SIGUSR1 pass for so long: launchers send them to all ranks, but rank 0 decides
/// when the others leave. After `grace` the process ends by itself.
///
/// # Errors
/// The thread or the signals cannot be used.
pub fn outlive_signals(grace: Duration) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut interrupt, mut terminate, mut user) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::user_defined1())?,
        )
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = user.recv() => {}
                }
                tokio::time::sleep(grace).await;
            });
            tracing::error!(?grace, "rank 0 has not dismissed this rank after a signal");
            std::process::exit(143);
        })?;
    Ok(())
}
