//! Counts requests where they leave: those that are made again count again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};

use super::super::store::Requests;

/// What has been asked so far.
#[derive(Debug, Default)]
pub(super) struct Counters {
    puts: AtomicU64,
    parts: AtomicU64,
    multipart: AtomicU64,
    gets: AtomicU64,
    lists: AtomicU64,
    deletes: AtomicU64,
    others: AtomicU64,
    failed: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
}

impl Counters {
    /// Bytes of an object have come.
    pub(super) fn received(&self, bytes: usize) {
        self.bytes_down.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn so_far(&self) -> Requests {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Requests {
            puts: get(&self.puts),
            parts: get(&self.parts),
            multipart: get(&self.multipart),
            gets: get(&self.gets),
            lists: get(&self.lists),
            deletes: get(&self.deletes),
            others: get(&self.others),
            failed: get(&self.failed),
            bytes_up: get(&self.bytes_up),
            bytes_down: get(&self.bytes_down),
        }
    }

    /// What kind of request this is, in the words of S3, Azure and Google's XML interface.
    fn kind(&self, method: &str, query: &str) -> &AtomicU64 {
        let has = |key: &str| query.split('&').any(|pair| pair.split('=').next() == Some(key));
        match method {
            "PUT" if has("partNumber") || has("blockid") => &self.parts,
            // Azure ends an upload by a list of blocks.
            "PUT" if query.contains("comp=blocklist") => &self.multipart,
            "PUT" => &self.puts,
            "POST" if has("delete") || query.contains("comp=batch") => &self.deletes,
            "POST" if has("uploads") || has("uploadId") => &self.multipart,
            "DELETE" if has("uploadId") => &self.multipart,
            "DELETE" => &self.deletes,
            "GET" if has("list-type") || query.contains("comp=list") || has("prefix") || has("delimiter") => {
                &self.lists
            }
            "GET" | "HEAD" => &self.gets,
            _ => &self.others,
        }
    }
}

/// Makes clients that count.
#[derive(Debug)]
pub(super) struct CountingConnector(pub(super) Arc<Counters>);

#[derive(Debug)]
struct Counting {
    client: HttpClient,
    counters: Arc<Counters>,
}

impl HttpConnector for CountingConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Counting { client, counters: Arc::clone(&self.0) }))
    }
}

#[async_trait::async_trait]
impl HttpService for Counting {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let kind = self.counters.kind(request.method().as_str(), request.uri().query().unwrap_or_default());
        kind.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes_up.fetch_add(request.body().content_length() as u64, Ordering::Relaxed);
        let answer = self.client.execute(request).await;
        let again = match &answer {
            Ok(answer) => answer.status().is_server_error() || matches!(answer.status().as_u16(), 408 | 429),
            Err(_) => true,
        };
        if again {
            self.counters.failed.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart() {
        let counters = Counters::default();
        for (method, query, kind) in [
            ("PUT", "", &counters.puts),
            ("PUT", "partNumber=3&uploadId=x", &counters.parts),
            ("PUT", "comp=block&blockid=AA", &counters.parts),
            ("PUT", "comp=blocklist", &counters.multipart),
            ("POST", "uploads", &counters.multipart),
            ("POST", "uploads=", &counters.multipart),
            ("POST", "uploadId=x", &counters.multipart),
            ("DELETE", "uploadId=x", &counters.multipart),
            ("DELETE", "", &counters.deletes),
            ("POST", "delete", &counters.deletes),
            ("GET", "list-type=2&prefix=a%2F&delimiter=%2F", &counters.lists),
            ("GET", "comp=list&restype=container", &counters.lists),
            ("GET", "", &counters.gets),
            ("HEAD", "", &counters.gets),
            ("POST", "Action=AssumeRole", &counters.others),
        ] {
            assert!(std::ptr::eq(counters.kind(method, query), kind), "{method} {query}");
        }
    }
}
