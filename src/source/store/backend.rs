//! Owns the making of a store of each kind, from the environment and the settings that go before it.
//! It must never ask the store anything.

use std::str::FromStr;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::list::PaginatedListStore;
use object_store::{ClientOptions, ObjectStore, RetryConfig};

use super::http::Connector;
use super::target::{Kind, Target};
use super::{StoreError, StoreOptions};
use crate::sync::Arc;

/// A store, and the way to list it where there is one.
pub(super) struct Backend {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) lists: Option<Arc<dyn PaginatedListStore>>,
}

pub(super) fn open(target: &Target, options: &StoreOptions) -> Result<Backend, StoreError> {
    let refused = |reason: String| StoreError::Setup { url: target.root.clone(), reason };
    let failed = |error: object_store::Error| refused(format!("{error}; {}", variables(target.kind)));
    let connector = Connector { in_flight: options.in_flight };
    // Whoever tries again has to know the deadline: that is done above.
    let once = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    match target.kind {
        Kind::S3 => {
            let mut builder = AmazonS3Builder::from_env();
            for (name, value) in &options.settings {
                builder = builder.with_config(setting::<AmazonS3ConfigKey>(name).map_err(refused)?, value);
            }
            let builder = builder.with_bucket_name(&target.base).with_retry(once).with_http_connector(connector);
            Ok(listed(builder.build().map_err(failed)?))
        }
        Kind::Gcs => {
            let mut builder = GoogleCloudStorageBuilder::from_env();
            for (name, value) in &options.settings {
                builder = builder.with_config(setting::<GoogleConfigKey>(name).map_err(refused)?, value);
            }
            let builder = builder.with_bucket_name(&target.base).with_retry(once).with_http_connector(connector);
            Ok(listed(builder.build().map_err(failed)?))
        }
        Kind::Azure => {
            let mut builder = MicrosoftAzureBuilder::from_env();
            for (name, value) in &options.settings {
                builder = builder.with_config(setting::<AzureConfigKey>(name).map_err(refused)?, value);
            }
            let builder = builder.with_url(&target.base).with_retry(once).with_http_connector(connector);
            Ok(listed(builder.build().map_err(failed)?))
        }
        Kind::Http => {
            if let Some((name, _)) = options.settings.first() {
                return Err(refused(format!("{name} is no setting of HTTP, which has none")));
            }
            let client = ClientOptions::new().with_allow_http(target.root.starts_with("http:"));
            let builder = HttpBuilder::new().with_url(&target.base).with_client_options(client);
            let store = builder.with_retry(once).with_http_connector(connector).build().map_err(failed)?;
            Ok(Backend { store: Arc::new(store), lists: None })
        }
    }
}

fn listed<S: ObjectStore + PaginatedListStore>(store: S) -> Backend {
    let store = Arc::new(store);
    Backend { store: Arc::clone(&store) as Arc<dyn ObjectStore>, lists: Some(store) }
}

fn setting<K: FromStr>(name: &str) -> Result<K, String> {
    name.to_ascii_lowercase().parse().map_err(|_| format!("{name} is no setting of such a store"))
}

/// What a kind of store is told by.
pub(super) fn variables(kind: Kind) -> &'static str {
    match kind {
        Kind::S3 => {
            "credentials and place are taken from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, \
             AWS_REGION, AWS_ENDPOINT_URL (and AWS_ALLOW_HTTP=true for http://); a public bucket wants \
             AWS_SKIP_SIGNATURE=true. Who may not list a bucket is refused what is not there as well: check the path"
        }
        Kind::Gcs => {
            "credentials are taken from GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT (paths of files); a \
             public bucket wants GOOGLE_SKIP_SIGNATURE=true"
        }
        Kind::Azure => {
            "credentials are taken from AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, \
             AZURE_STORAGE_SAS_KEY or AZURE_CLIENT_ID; a public container wants AZURE_SKIP_SIGNATURE=true"
        }
        Kind::Http => "a server that wants a login is not supported, but for a signature in the URL's query",
    }
}
