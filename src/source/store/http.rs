//! HTTP client of the stores, with TLS, and a record of each response's status. It makes one attempt; retries are in
//! `client.rs`.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use object_store::client::{
    ClientConfigKey, ClientOptions, HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService,
};
use rustls::RootCertStore;
use rustls::crypto::ring;

use crate::sync::{Arc, Mutex, lock};

/// Maximum time to establish a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time after which an unused connection is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Record of the response to a request, placed in the request's extensions. `object_store`'s errors do not contain it.
#[derive(Clone, Debug, Default)]
pub(super) struct ResponseInfo(Arc<Mutex<Response>>);

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Response {
    /// True once the request was sent; false while credentials are being obtained.
    pub(super) sent: bool,
    pub(super) status: Option<u16>,
    /// Value of the `Retry-After` header.
    pub(super) retry_after: Option<Duration>,
}

impl ResponseInfo {
    pub(super) fn get(&self) -> Response {
        *lock(&self.0)
    }
}

/// Factory of HTTP/1.1 clients: one connection for each concurrent request, TLS by `ring` with the certificate
/// authorities of this machine.
#[derive(Debug)]
pub(super) struct Connector {
    pub(super) in_flight: usize,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let refused = |source: Box<dyn std::error::Error + Send + Sync>| object_store::Error::Generic {
            store: "HTTP client",
            source,
        };
        let plain = options.get_config_value(&ClientConfigKey::AllowHttp).unwrap_or_default().to_ascii_lowercase();
        let plain = ["1", "true", "on", "yes", "y"].contains(&plain.as_str());
        let client = reqwest::Client::builder()
            .user_agent(concat!("feedstock/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls().map_err(|error| refused(Box::new(error)))?)
            .https_only(!plain)
            // Many connections are faster than many streams on one, and a slow response delays no other.
            .http1_only()
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(self.in_flight)
            // Ranges refer to the stored bytes.
            .no_gzip()
            .no_brotli()
            .no_deflate()
            .no_zstd()
            .build()
            .map_err(|error| refused(Box::new(error)))?;
        Ok(HttpClient::new(RecordingClient(HttpClient::new(client))))
    }
}

fn tls() -> Result<rustls::ClientConfig, rustls::Error> {
    let mut roots = RootCertStore::empty();
    // Without any certificate, plain HTTP still works; over HTTPS the error names the certificate.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(ring::default_provider());
    let versions = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(versions.with_root_certificates(roots).with_no_client_auth())
}

/// Client that fills in the [`ResponseInfo`] of each request.
#[derive(Debug)]
struct RecordingClient(HttpClient);

impl HttpService for RecordingClient {
    fn call<'me, 'call>(
        &'me self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'call>>
    where
        'me: 'call,
        Self: 'call,
    {
        Box::pin(async move {
            let info = request.extensions().get::<ResponseInfo>().cloned();
            if let Some(info) = &info {
                lock(&info.0).sent = true;
            }
            let response = self.0.execute(request).await?;
            if let Some(info) = info {
                let after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
                let (status, retry_after) = (Some(response.status().as_u16()), after.map(Duration::from_secs));
                *lock(&info.0) = Response { sent: true, status, retry_after };
            }
            Ok(response)
        })
    }
}
