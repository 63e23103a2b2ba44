//! Tests of object stores with real servers on loopback and a proxy that injects faults: every read returns the right
//! bytes, or an error by the deadline that describes the failure.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "in a test a panic is the report")]

mod cached;
mod faults;
#[path = "../common/faulty_proxy.rs"]
mod faulty_proxy;
mod held;
#[path = "../common/nginx.rs"]
mod nginx;
mod s3;
mod shards;
#[path = "../common/skip.rs"]
mod skip;

use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use feedstock::source::SourceError;
use feedstock::source::store::{Object, Store, StoreError, StoreOptions};
use nginx::Nginx;
use s3::{S3, s3_settings};
use tempfile::TempDir;

#[global_allocator]
static HEAP: feedstock::host::CountingAllocator = feedstock::host::CountingAllocator;

/// Content of an object: every eight bytes depend on their position and on the version.
fn content(bytes: usize, version: u64) -> Vec<u8> {
    let word = |i: u64| (feedstock::rng::mix64(i ^ version << 40)).to_le_bytes();
    (0..bytes.div_ceil(8) as u64).flat_map(word).take(bytes).collect()
}

/// Folder with a bucket of some objects.
fn bucket(shards: &[(&str, usize)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, bytes) in shards {
        put(root.path(), path, &content(*bytes, 0));
    }
    root
}

fn put(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join("bucket").join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn s3_store(address: SocketAddr, options: StoreOptions) -> Store {
    let options = StoreOptions { settings: s3_settings(address), ..options };
    Store::open("s3://bucket/", options).unwrap().0
}

/// Options with short timeouts and waits.
fn quick() -> StoreOptions {
    StoreOptions {
        attempt_timeout: Duration::from_secs(1),
        deadline: Duration::from_secs(5),
        backoff: Duration::from_millis(2),
        hedge_after: None,
        ..StoreOptions::default()
    }
}

fn read(object: &Object, offset: u64, bytes: usize) -> Result<Vec<u8>, SourceError> {
    let mut out = vec![0xEE; bytes];
    object.read_at(offset, &mut out).map(|()| out)
}

fn store_error(error: &SourceError) -> &StoreError {
    match error {
        SourceError::Store(error) => error,
        other => panic!("{other}"),
    }
}

fn check_reads(store: &Store, path: &str, whole: &[u8]) {
    let object = store.object(path).unwrap();
    assert_eq!(object.len(), whole.len() as u64);
    assert!(object.version().etag.is_some() && object.version().modified.is_some(), "{}", object.version());
    for (offset, bytes) in [(0, 1), (0, 512), (1000, 70_000), (whole.len() - 1, 1), (0, whole.len()), (17, 0)] {
        assert!(read(&object, offset as u64, bytes).unwrap() == whole[offset..offset + bytes], "{bytes} from {offset}");
    }
    for (chunk, ahead) in [(100_000, 0), (1 << 20, 3), (64 << 20, 2)] {
        let mut all = Vec::new();
        object.reader(chunk, ahead).read_to_end(&mut all).unwrap();
        assert!(all == whole, "in chunks of {chunk}");
    }
    let past = read(&object, whole.len() as u64 - 5, 6).unwrap_err();
    assert!(matches!(store_error(&past), StoreError::PastEnd { .. }), "{past}");
    let missing = store.object("no/such.tar").unwrap_err();
    let text = missing.to_string();
    assert!(text.contains("no/such.tar") && text.contains("1 attempt") && text.contains("check the path"), "{text}");
    assert!(store_error(&missing).is_not_found(), "{text}");
}

#[test]
fn s3_reads_parts_and_the_whole() {
    let root = bucket(&[("train/000.tar", 3_000_001), ("empty", 0)]);
    let server = S3::start(root.path());
    let store = s3_store(server.address, StoreOptions::default());
    check_reads(&store, "train/000.tar", &content(3_000_001, 0));
    let empty = store.object("empty").unwrap();
    assert!(empty.is_empty() && read(&empty, 0, 0).unwrap().is_empty());
    assert_eq!(empty.reader(10, 2).read(&mut [0; 4]).unwrap(), 0);
}

#[test]
fn nginx_reads_parts_and_the_whole() {
    let (root, scratch) = (bucket(&[("a b/000.tar", 3_000_001)]), tempfile::tempdir().unwrap());
    let Some(server) = Nginx::start(root.path(), scratch.path()) else { return };
    let url = format!("http://{}/bucket/a%20b/000.tar", server.address);
    let (store, path) = Store::open(&url, StoreOptions::default()).unwrap();
    assert_eq!(path, "bucket/a b/000.tar");
    check_reads(&store, &path, &content(3_000_001, 0));
    let error = store.list("bucket/").unwrap_err();
    assert!(matches!(store_error(&error), StoreError::CannotList { .. }), "{error}");
    assert!(error.to_string().contains("{000..146}"), "{error}");
}

#[test]
fn gcs_and_azure_read_parts_and_the_whole() {
    let (root, scratch) = (bucket(&[("train/000.tar", 1_500_000)]), tempfile::tempdir().unwrap());
    // Reads use paths, ranges and ETags alone, which any web server supports.
    let Some(server) = Nginx::start(root.path(), scratch.path()) else { return };
    let address = server.address;
    let setting = |name: &str, value: String| (name.to_owned(), value);
    let account = format!(
        r#"{{"gcs_base_url": "http://{address}", "disable_oauth": true, "client_email": "", "private_key": "",
            "private_key_id": ""}}"#
    );
    let gcs = vec![setting("GOOGLE_SERVICE_ACCOUNT_KEY", account), setting("ALLOW_HTTP", "true".into())];
    let azure = vec![
        setting("AZURE_STORAGE_ACCOUNT_NAME", "me".into()),
        setting("AZURE_STORAGE_ENDPOINT", format!("http://{address}")),
        setting("AZURE_SKIP_SIGNATURE", "true".into()),
        setting("AZURE_ALLOW_HTTP", "1".into()),
    ];
    for (url, settings) in [("gs://bucket/train/000.tar", gcs), ("az://bucket/train/000.tar", azure)] {
        let (store, path) = Store::open(url, StoreOptions { settings, ..quick() }).unwrap();
        check_reads(&store, &path, &content(1_500_000, 0));
    }
}

#[test]
#[ignore = "the child of another test"]
fn child_with_certificate() {
    let (store, path) = Store::open(&std::env::var("STORE_URL").unwrap(), quick()).unwrap();
    check_reads(&store, &path, &content(1_500_000, 0));
}

#[test]
fn https_needs_a_trusted_certificate() {
    let (root, scratch) = (bucket(&[("x", 1_500_000)]), tempfile::tempdir().unwrap());
    let Some(server) = Nginx::start_tls(root.path(), scratch.path()) else { return };
    let url = format!("https://{}/bucket/x", server.address);
    let (store, path) = Store::open(&url, StoreOptions { attempts: 2, ..quick() }).unwrap();
    let error = store.object(&path).unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
    let certificate = scratch.path().join("certificate").display().to_string();
    let trusting = child("child_with_certificate", &[("STORE_URL", url), ("SSL_CERT_FILE", certificate)]).status();
    assert!(trusting.unwrap().success());
}

#[test]
fn listings_filter_by_prefix() {
    let shards = [("train-000.tar", 10), ("train-001.tar", 20), ("train/x", 1), ("val-000.tar", 5), ("trained", 3)];
    let root = bucket(&shards);
    for i in 0..2100 {
        put(root.path(), &format!("many/{i:04}"), b"x");
    }
    let server = S3::start(root.path());
    let store = s3_store(server.address, StoreOptions::default());
    let list = |prefix| -> Vec<(String, u64)> {
        store.list(prefix).unwrap().into_iter().map(|entry| (entry.path, entry.bytes)).collect()
    };
    let entry = |path: &str, bytes| (path.to_owned(), bytes);
    assert_eq!(list("train-"), [entry("train-000.tar", 10), entry("train-001.tar", 20)]);
    assert_eq!(list("nothing"), []);
    let many = list("many/");
    assert_eq!((many.len(), &many[0], &many[2099]), (2100, &entry("many/0000", 1), &entry("many/2099", 1)));
}

#[test]
fn permanent_errors_fail_at_once_with_advice() {
    let root = bucket(&[("x", 100)]);
    let server = S3::start(root.path());
    let mut settings = s3_settings(server.address);
    settings.last_mut().unwrap().1 = "another secret".to_owned();
    let options = StoreOptions { settings: settings.clone(), ..StoreOptions::default() };
    let (store, path) = Store::open("s3://bucket/x", options).unwrap();
    let error = store.object(&path).unwrap_err();
    assert!(!store_error(&error).is_not_found());
    let error = error.to_string();
    assert!(error.contains("403") && error.contains("1 attempt") && error.contains("AWS_SECRET_ACCESS_KEY"), "{error}");
    assert!(!error.contains("another secret"), "{error}");
    // Without credentials, the metadata server of the machine is asked for a role, and there is none.
    let nowhere = vec![("AWS_METADATA_ENDPOINT".to_owned(), "http://127.0.0.1:9".to_owned())];
    let (store, path) = Store::open("s3://bucket/x", StoreOptions { settings: nowhere, ..quick() }).unwrap();
    let error = store.object(&path).unwrap_err().to_string();
    assert!(error.contains("3 attempts") && error.contains("AWS_SKIP_SIGNATURE"), "{error}");
    let unknown = StoreOptions { settings: vec![("AWS_NONSENSE".into(), "1".into())], ..StoreOptions::default() };
    let error = Store::open("s3://bucket/x", unknown).unwrap_err().to_string();
    assert!(error.contains("unknown setting AWS_NONSENSE"), "{error}");
}

#[test]
fn changed_objects_are_errors_with_numbers() {
    let (root, scratch) = (bucket(&[("x", 5000)]), tempfile::tempdir().unwrap());
    let server = S3::start(root.path());
    let nginx = Nginx::start(root.path(), scratch.path());
    let mut stores = vec![(s3_store(server.address, quick()), "x")];
    let web = nginx.as_ref().map(|nginx| Store::open(&format!("http://{}/", nginx.address), quick()).unwrap().0);
    stores.extend(web.map(|store| (store, "bucket/x")));
    // Longer, shorter, and of the same size, with another time.
    for bytes in [6000, 1000, 5000] {
        put(root.path(), "x", &content(5000, 0));
        let objects: Vec<Object> = stores.iter().map(|(store, path)| store.object(path).unwrap()).collect();
        std::thread::sleep(Duration::from_millis(1100));
        put(root.path(), "x", &content(bytes, 1));
        for object in objects {
            for offset in [0, 4000] {
                let error = read(&object, offset, 900).unwrap_err();
                let StoreError::Changed { opened, found, .. } = store_error(&error) else { panic!("{error}") };
                assert_eq!((opened.bytes, found.as_ref().unwrap().bytes), (5000, bytes as u64), "{error}");
                assert!(opened != found.as_ref().unwrap() && error.to_string().contains("open the source again"));
            }
            let scan = object.reader(700, 2).read_to_end(&mut Vec::new()).unwrap_err().to_string();
            assert!(scan.contains("was 5000 bytes"), "{scan}");
        }
    }
}

#[test]
fn reads_work_on_blocking_threads_of_other_runtimes() {
    let root = bucket(&[("x", 100_000)]);
    let server = S3::start(root.path());
    let object = s3_store(server.address, quick()).object("x").unwrap();
    // Like the pipeline, on the blocking threads of a current-thread runtime.
    let pipeline = tokio::runtime::Builder::new_current_thread().max_blocking_threads(4).build().unwrap();
    let reads: Vec<_> = (0..16u64)
        .map(|i| {
            let object = object.clone();
            pipeline.spawn_blocking(move || read(&object, i * 5000, 5000).unwrap())
        })
        .collect();
    for (i, done) in reads.into_iter().enumerate() {
        assert!(pipeline.block_on(done).unwrap() == content(100_000, 0)[i * 5000..i * 5000 + 5000]);
    }
    // The last clone may be dropped in asynchronous code.
    pipeline.block_on(async move { drop(object) });
}

/// Command that runs one ignored test of this program in a new process.
fn child(name: &str, variables: &[(&str, String)]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--ignored", "--nocapture"]);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    command
}

#[test]
#[ignore = "the child of another test"]
fn child_with_environment() {
    let (store, path) = Store::open("s3://bucket/x", StoreOptions::default()).unwrap();
    assert!(read(&store.object(&path).unwrap(), 10, 90).unwrap() == content(100, 0)[10..]);
}

#[test]
fn credentials_and_location_come_from_the_environment() {
    let root = bucket(&[("x", 100)]);
    let server = S3::start(root.path());
    let settings = s3_settings(server.address);
    let variables: Vec<(&str, String)> = settings.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    assert!(child("child_with_environment", &variables).status().unwrap().success());
    let wrong: Vec<(&str, String)> =
        variables.into_iter().map(|(name, value)| (name, value.replace(s3::SECRET, "wrong"))).collect();
    assert!(!child("child_with_environment", &wrong).stderr(std::process::Stdio::null()).status().unwrap().success());
}
