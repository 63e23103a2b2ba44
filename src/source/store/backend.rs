//! Construction of `object_store` clients from the environment and the settings of [`StoreOptions`]. No request is
//! sent.

use std::str::FromStr;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::list::PaginatedListStore;
use object_store::{ClientOptions, ObjectStore, RetryConfig};

use super::error::StoreError;
use super::http::Connector;
use super::options::StoreOptions;
use super::url::StoreKind;
use crate::sync::Arc;

/// Client of a store, and its interface for listings where it has one.
pub(super) struct Backend {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) lister: Option<Arc<dyn PaginatedListStore>>,
}

pub(super) fn open(kind: StoreKind, root: &str, base: &str, options: &StoreOptions) -> Result<Backend, StoreError> {
    let refused = |reason: String| StoreError::Setup { url: root.to_owned(), reason };
    let failed = |error: object_store::Error| refused(format!("{error}; {}", credentials_hint(kind)));
    let connector = Connector { in_flight: options.in_flight };
    // Retries are made by `client.rs`, which knows the deadline.
    let once = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    // The settings come before the URL, which takes precedence.
    macro_rules! build {
        ($builder:ty, $key:ty, $with_url:ident) => {{
            let mut builder = <$builder>::from_env();
            for (name, value) in &options.settings {
                builder = builder.with_config(config_key::<$key>(name).map_err(refused)?, value);
            }
            let builder = builder.$with_url(base).with_retry(once).with_http_connector(connector);
            Ok(with_listings(builder.build().map_err(failed)?))
        }};
    }
    match kind {
        StoreKind::S3 => build!(AmazonS3Builder, AmazonS3ConfigKey, with_bucket_name),
        StoreKind::Gcs => build!(GoogleCloudStorageBuilder, GoogleConfigKey, with_bucket_name),
        StoreKind::Azure => build!(MicrosoftAzureBuilder, AzureConfigKey, with_url),
        StoreKind::Http => {
            if let Some((name, _)) = options.settings.first() {
                return Err(refused(format!("unknown setting {name}: HTTP has no settings")));
            }
            let client = ClientOptions::new().with_allow_http(root.starts_with("http:"));
            let builder = HttpBuilder::new().with_url(base).with_client_options(client);
            let store = builder.with_retry(once).with_http_connector(connector).build().map_err(failed)?;
            Ok(Backend { store: Arc::new(store), lister: None })
        }
    }
}

fn with_listings<S: ObjectStore + PaginatedListStore>(store: S) -> Backend {
    let store = Arc::new(store);
    Backend { store: Arc::clone(&store) as Arc<dyn ObjectStore>, lister: Some(store) }
}

fn config_key<K: FromStr>(name: &str) -> Result<K, String> {
    name.to_ascii_lowercase().parse().map_err(|_| format!("unknown setting {name} for this kind of store"))
}

/// Environment variables that configure a kind of store.
pub(super) fn credentials_hint(kind: StoreKind) -> &'static str {
    match kind {
        StoreKind::S3 => {
            "credentials and location are read from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, \
             AWS_REGION, AWS_ENDPOINT_URL (and AWS_ALLOW_HTTP=true for http://); a public bucket needs \
             AWS_SKIP_SIGNATURE=true. Without permission to list the bucket (s3:ListBucket), S3 gives this answer for \
             a missing object, too: check the path"
        }
        StoreKind::Gcs => {
            "credentials are read from GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT (paths of files); a \
             public bucket needs GOOGLE_SKIP_SIGNATURE=true"
        }
        StoreKind::Azure => {
            "credentials are read from AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, \
             AZURE_STORAGE_SAS_KEY or AZURE_CLIENT_ID; a public container needs AZURE_SKIP_SIGNATURE=true"
        }
        StoreKind::Http => "logins are not supported, except for a signature in the URL's query",
    }
}
