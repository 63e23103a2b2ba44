//! Owns the way to a server: the client of HTTP with its TLS, and what an answer's first line said.
//! It must never try again or wait: whoever asks does.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use object_store::client::{
    ClientConfigKey, ClientOptions, HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService,
};
use rustls::RootCertStore;
use rustls::crypto::ring;

use crate::sync::{Arc, Mutex, lock};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection that nobody uses is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// What a server answered a request, for whoever put this in the request's extensions: the stores' own errors do not
/// say it.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen(Arc<Mutex<Answer>>);

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Answer {
    /// Whether the request was made: credentials are looked for before.
    pub(super) asked: bool,
    pub(super) status: Option<u16>,
    /// How long the server asks to be left alone.
    pub(super) retry_after: Option<Duration>,
}

impl Seen {
    pub(super) fn answer(&self) -> Answer {
        *lock(&self.0)
    }
}

/// Makes clients for stores: HTTP/1.1, a connection for each request that is under way, TLS by `ring` with the
/// authorities that this machine trusts.
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
            // Many connections are faster than many streams on one, and a straggler holds nobody else up.
            .http1_only()
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(self.in_flight)
            // Ranges are ranges of what is stored.
            .no_gzip()
            .no_brotli()
            .no_deflate()
            .no_zstd()
            .build()
            .map_err(|error| refused(Box::new(error)))?;
        Ok(HttpClient::new(Client(HttpClient::new(client))))
    }
}

fn tls() -> Result<rustls::ClientConfig, rustls::Error> {
    let mut roots = RootCertStore::empty();
    // A machine without any still reads over plain HTTP; over HTTPS the refusal names the certificate.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(ring::default_provider());
    let versions = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(versions.with_root_certificates(roots).with_no_client_auth())
}

/// A client that notes what was answered.
#[derive(Debug)]
struct Client(HttpClient);

impl HttpService for Client {
    fn call<'me, 'call>(
        &'me self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'call>>
    where
        'me: 'call,
        Self: 'call,
    {
        Box::pin(async move {
            let seen = request.extensions().get::<Seen>().cloned();
            if let Some(seen) = &seen {
                lock(&seen.0).asked = true;
            }
            let response = self.0.execute(request).await?;
            if let Some(seen) = seen {
                let after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
                let (status, retry_after) = (Some(response.status().as_u16()), after.map(Duration::from_secs));
                *lock(&seen.0) = Answer { asked: true, status, retry_after };
            }
            Ok(response)
        })
    }
}
