//! A real S3 server on loopback, within the test's own process: it checks signatures, takes uploads in parts, and can be
//! told to fail. Objects are files, so that a test can look at them and damage them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_NONE_MATCH, LAST_MODIFIED, RANGE};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::Body;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::{Invocation, Scratch};

/// The key of the one who may do everything.
const ACCESS_KEY: &str = "AKIDEXAMPLE";
const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
/// The bucket that is there.
const BUCKET: &str = "backups";

/// A server.
pub struct S3Server {
    runtime: Option<Runtime>,
    port: u16,
    shared: Arc<Shared>,
    scratch: Scratch,
}

struct Shared {
    root: PathBuf,
    service: S3Service,
    /// A put on condition looks and writes in one go, which this server's file system does not do by itself.
    conditional: tokio::sync::Mutex<()>,
    refusals: AtomicU32,
    breaks: AtomicU32,
    held: tokio::sync::watch::Sender<bool>,
    seen: Mutex<BTreeMap<String, u64>>,
}

impl S3Server {
    /// Starts one with an empty bucket.
    #[must_use]
    pub fn start() -> Self {
        let scratch = Scratch::new();
        let root = scratch.join("s3");
        fs::create_dir_all(root.join(BUCKET)).expect("a folder");
        let mut builder = S3ServiceBuilder::new(FileSystem::new(&root).expect("a folder to serve"));
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let shared = Arc::new(Shared {
            root,
            service: builder.build(),
            conditional: tokio::sync::Mutex::default(),
            refusals: AtomicU32::new(0),
            breaks: AtomicU32::new(0),
            held: tokio::sync::watch::Sender::new(false),
            seen: Mutex::default(),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        runtime.spawn(serve(listener, Arc::clone(&shared)));
        Self { runtime: Some(runtime), port, shared, scratch }
    }

    /// What `--repo` is to be told, with a prefix in the bucket.
    #[must_use]
    pub fn address(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// Settings of a client that may do everything, by the names of `--store-option`.
    #[must_use]
    pub fn options(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        [("endpoint", &*endpoint), ("access_key_id", ACCESS_KEY), ("secret_access_key", SECRET_KEY)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .to_vec()
    }

    /// A command that finds its settings where the SDKs do: in the environment.
    #[must_use]
    pub fn with_environment(&self, command: Invocation) -> Invocation {
        command
            .env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port))
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .env("AWS_REGION", "us-east-1")
    }

    /// What must never be seen anywhere.
    #[must_use]
    pub fn secret(&self) -> &'static str {
        SECRET_KEY
    }

    /// The file that is an object.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.shared.root.join(BUCKET).join(name)
    }

    /// A folder beside the server's own.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Answers the next requests with 503.
    pub fn refuse(&self, requests: u32) {
        self.shared.refusals.store(requests, Ordering::SeqCst);
    }

    /// Closes the connections of the next requests without an answer.
    pub fn break_off(&self, requests: u32) {
        self.shared.breaks.store(requests, Ordering::SeqCst);
    }

    /// Whether everything that was to fail has done so.
    #[must_use]
    pub fn has_failed_all(&self) -> bool {
        self.shared.refusals.load(Ordering::SeqCst) == 0 && self.shared.breaks.load(Ordering::SeqCst) == 0
    }

    /// Lets no upload's completion be answered, or lets them go on.
    pub fn hold_completions(&self, hold: bool) {
        self.shared.held.send_replace(hold);
    }

    /// How many requests of a kind have come: `PUT`, `PUT part`, `POST uploads`, `POST complete`, `GET` and so on.
    #[must_use]
    pub fn seen(&self, kind: &str) -> u64 {
        let seen = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(kind).copied().unwrap_or(0)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((socket, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let answer = service_fn(move |request| answer(Arc::clone(&shared), request));
            // A client may go away as it likes.
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), answer).await;
        });
    }
}

fn take_one(counter: &AtomicU32) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let query = request.uri().query().unwrap_or_default();
    let kind = match request.method().as_str() {
        "PUT" if query.contains("partNumber") => "PUT part".to_owned(),
        "POST" if query.contains("uploadId") => "POST complete".to_owned(),
        "POST" if query.contains("uploads") => "POST uploads".to_owned(),
        method => method.to_owned(),
    };
    let completes = kind == "POST complete";
    *shared.seen.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_default() += 1;
    if take_one(&shared.breaks) {
        return Err(io::Error::other("told to break off"));
    }
    if take_one(&shared.refusals) {
        let body = Body::from(
            "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
                .to_owned(),
        );
        return Ok(Response::builder()
            .status(StatusCode::SERVICE_UNAVAILABLE)
            .body(body)
            .expect("an answer"));
    }
    if completes {
        let mut held = shared.held.subscribe();
        // The sender is ours.
        let _ = held.wait_for(|held| !held).await;
    }
    if let Some(answer) = whole_for_suffix(&shared.root, &request) {
        return Ok(answer);
    }
    let _alone = match request.headers().contains_key(IF_NONE_MATCH) {
        true => Some(shared.conditional.lock().await),
        false => None,
    };
    Service::call(&shared.service, request).await.map_err(|error| io::Error::other(format!("{error:?}")))
}

/// S3 gives the whole object where more of its end is asked for than it has; this server's file system fails at that, and
/// the range is signed, so that it cannot be changed. Such a request is answered here; all others have their signatures
/// checked.
fn whole_for_suffix(root: &Path, request: &Request<Incoming>) -> Option<Response<Body>> {
    let range = request.headers().get(RANGE)?.to_str().ok()?;
    let suffix: usize = range.strip_prefix("bytes=-")?.parse().ok()?;
    let path = root.join(request.uri().path().trim_start_matches('/'));
    let length = usize::try_from(fs::metadata(&path).ok()?.len()).ok()?;
    if length == 0 || length >= suffix {
        return None;
    }
    let content = fs::read(&path).ok()?;
    let answer = Response::builder()
        .status(StatusCode::PARTIAL_CONTENT)
        .header(CONTENT_RANGE, format!("bytes 0-{}/{length}", length - 1))
        .header(CONTENT_LENGTH, length)
        .header(ETAG, "\"whole\"")
        .header(LAST_MODIFIED, "Thu, 01 Jan 2026 00:00:00 GMT");
    Some(answer.body(Body::from(content)).expect("an answer"))
}
