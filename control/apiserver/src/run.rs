//! From flags to a serving process.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use store::Sealed;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::Config;
use crate::registry::Registry;
use crate::state::AppState;
use crate::storage::{self, Place};
use crate::{bootstrap, masters, notify, server};

/// How often the certificate files are looked at.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(60);

/// How long the store may take to let this server leave the endpoints.
const LEAVE: Duration = Duration::from_secs(2);

/// How often what is too old is looked for in the watch caches.
const HISTORY_CHECK: Duration = Duration::from_secs(30);

/// Runs the API server; `args` begin with the program's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    if args.get(1).is_some_and(|a| a == "store") {
        return crate::offline::main(&args);
    }
    let config = match Config::try_parse_from(args) {
        Ok(config) => config,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            // A message that cannot be printed cannot be reported either.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log_level).unwrap_or_else(|_| "info".into());
    // A second subscriber in one process is no failure: tests start several servers.
    drop(tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_stack_size(1 << 20).enable_all().build();
    let done = runtime.context("starting the runtime").and_then(|runtime| {
        let done = runtime.block_on(run(config));
        runtime.shutdown_timeout(Duration::from_secs(1));
        done
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            notify::send(&format!("STATUS={error:#}"));
            storage::exit_code(&error)
        }
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    let stop = watch::Sender::new(false);
    let stopping = stop.subscribe();
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.send_replace(true);
    });
    let mut stopped = stopping.clone();
    // It may wait on and on, for etcd or for a backup.
    let server = tokio::select! {
        started = Server::start(config) => started?,
        _ = stopped.wait_for(|stop| *stop) => return Ok(()),
    };
    notify::send("READY=1\nSTATUS=serving");
    tracing::info!(address = %server.address, version = crate::GIT_VERSION, "serving");
    server.until(stopping).await
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    pub state: Arc<AppState>,
    pub address: std::net::SocketAddr,
    serving: tokio::task::JoinHandle<()>,
    /// Keeps this server among the endpoints, and takes it out.
    keeping: tokio::task::JoinHandle<()>,
    leave: watch::Sender<bool>,
    stop: watch::Sender<bool>,
}

impl Server {
    /// Opens the store, makes what every cluster has, and begins to serve.
    pub async fn start(mut config: Config) -> anyhow::Result<Server> {
        notify::send("STATUS=opening the store");
        let tls = server::tls(&config)?;
        let place = Place::of_server(&config.store_dir, &config.etcd, config.await_restore).await?;
        let engine = place.engine().await?;
        if place.is_fenced() {
            let socket =
                config.store_socket.as_deref().map(|path| storage::serve(path, place, engine, true)).transpose()?;
            return closed(socket).await;
        }
        let sealed = Arc::new(Sealed::open(engine.clone(), crate::encryption::keyring(&config)?).await?);
        let socket =
            config.store_socket.as_deref().map(|path| storage::serve(path, place, engine, false)).transpose()?;
        let listener = TcpListener::bind((config.bind_address, config.secure_port))
            .await
            .with_context(|| format!("listening on {}:{}", config.bind_address, config.secure_port))?;
        let address = listener.local_addr()?;
        config.secure_port = address.port();
        let state = AppState::new(config, Registry::new(sealed.clone()))?;
        bootstrap::run(&state).await?;
        crate::customs::start(&state).await;
        let (stop, stopped) = watch::channel(false);
        let (renew, renewed) = watch::channel(tls);
        tokio::spawn(watch_certificate(state.clone(), renew));
        tokio::spawn(serve_socket(state.clone(), socket));
        tokio::spawn(crate::encryption::follow(state.clone(), sealed));
        tokio::spawn(forget_the_past(state.clone()));
        tokio::spawn(bootstrap::keep(state.clone()));
        let serving = tokio::spawn(server::serve(state.clone(), listener, renewed, stopped));
        state.set_ready();
        let (leave, leaving) = watch::channel(false);
        let keeping = tokio::spawn(masters::keep(state.clone(), leaving));
        Ok(Server { state, address, serving, keeping, leave, stop })
    }

    /// Serves until `stopping` turns true or the store fails, then ends in order; the store's failure is an error.
    pub async fn until(self, mut stopping: watch::Receiver<bool>) -> anyhow::Result<()> {
        let store = self.state.registry.store().clone();
        let failed = async {
            loop {
                if let Some(why) = store.failure() {
                    return why;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        let failure = tokio::select! {
            _ = stopping.wait_for(|s| *s) => None,
            why = failed => Some(why),
        };
        self.stop().await;
        match failure {
            None => Ok(()),
            Some(why) => {
                Err(anyhow::anyhow!("the store has failed, so that the server ends, to be started again: {why}"))
            }
        }
    }

    /// Ends in order: others hear that they are not to come here, then no new connections, watches end, open requests
    /// finish.
    pub async fn stop(mut self) {
        notify::send("STOPPING=1\nSTATUS=ending");
        self.state.set_unready();
        self.leave.send_replace(true);
        if tokio::time::timeout(LEAVE, &mut self.keeping).await.is_err() {
            self.keeping.abort();
            tracing::warn!("the store did not answer, so that this server stays among the endpoints for some seconds");
        }
        self.state.stop();
        self.stop.send_replace(true);
        if let Err(error) = self.serving.await {
            tracing::error!("the serving task ended badly: {error}");
        }
        let store = self.state.registry.store().clone();
        if let Err(error) = tokio::task::spawn_blocking(move || store.close()).await {
            tracing::error!("the store was not closed in order: {error}");
        }
    }
}

/// Only gives copies of the store, until the process ends: a write that was acknowledged now would be in none that is out.
async fn closed(socket: Option<impl Future<Output = ()>>) -> anyhow::Result<Server> {
    tracing::warn!("the store is closed, as another machine or image goes on with it; nobody is served");
    notify::send("STATUS=closed: another machine or image goes on with its store (`kimg roll`, `kimg heal master`)");
    match socket {
        Some(socket) => socket.await,
        None => std::future::pending().await,
    }
    anyhow::bail!("the store's socket has ended")
}

/// Serves the store's socket, if there is one, until the server ends.
async fn serve_socket(state: Arc<AppState>, socket: Option<impl Future<Output = ()>>) {
    let Some(socket) = socket else { return };
    let mut stopping = state.stopping();
    tokio::select! {
        () = socket => {}
        _ = stopping.wait_for(|s| *s) => {}
    }
}

/// Lets the watch caches forget what is too old.
async fn forget_the_past(state: Arc<AppState>) {
    let mut stopping = state.stopping();
    loop {
        tokio::select! {
            () = tokio::time::sleep(HISTORY_CHECK) => state.registry.age(),
            _ = stopping.wait_for(|s| *s) => return,
        }
    }
}

/// Takes a new serving certificate when the files change.
async fn watch_certificate(state: Arc<AppState>, renew: watch::Sender<Arc<rustls::ServerConfig>>) {
    let stamp = |config: &Config| std::fs::metadata(&config.tls_cert_file).and_then(|m| m.modified()).ok();
    let mut seen = stamp(&state.config);
    let mut stopping = state.stopping();
    loop {
        tokio::select! {
            () = tokio::time::sleep(CERTIFICATE_CHECK) => {}
            _ = stopping.wait_for(|s| *s) => return,
        }
        let now = stamp(&state.config);
        if now == seen {
            continue;
        }
        match server::tls(&state.config) {
            Ok(tls) => {
                seen = now;
                renew.send_replace(tls);
                tracing::info!("the serving certificate was renewed");
            }
            Err(error) => tracing::warn!("the changed serving certificate is not taken: {error:#}"),
        }
    }
}
