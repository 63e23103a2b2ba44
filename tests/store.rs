//! Objects of real servers on loopback, read through whatever goes wrong in between: what comes is right, or it is an
//! error by the deadline that says what happened.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "in a test a panic is the report")]

#[path = "store/cached.rs"]
mod cached;
#[path = "store/faults.rs"]
mod faults;
#[path = "common/faulty_proxy.rs"]
mod faulty_proxy;
#[path = "store/held.rs"]
mod held;
#[path = "common/servers.rs"]
mod servers;
#[path = "store/shards.rs"]
mod shards;
#[path = "common/skip.rs"]
mod skip;

use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use feedstock::source::SourceError;
use feedstock::source::store::{Listed, Object, Store, StoreError, StoreOptions};
use servers::{Nginx, S3, s3_settings};
use tempfile::TempDir;

#[global_allocator]
static HEAP: feedstock::host::CountingAllocator = feedstock::host::CountingAllocator;

/// What an object holds: every eight bytes say where they are, and of which version.
fn content(bytes: usize, version: u64) -> Vec<u8> {
    let word = |i: u64| (feedstock::rng::mix64(i ^ version << 40)).to_le_bytes();
    (0..bytes.div_ceil(8) as u64).flat_map(word).take(bytes).collect()
}

/// A bucket with some shards in it.
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

fn s3(address: SocketAddr, options: StoreOptions) -> Store {
    let options = StoreOptions { settings: s3_settings(address), ..options };
    Store::open("s3://bucket/", options).unwrap().0
}

/// Options under which nothing takes long.
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

fn everything_reads(store: &Store, path: &str, whole: &[u8]) {
    let object = store.object(path).unwrap();
    assert_eq!(object.len(), whole.len() as u64);
    assert!(object.identity().etag.is_some() && object.identity().modified.is_some(), "{}", object.identity());
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
}

#[test]
fn s3_reads_parts_and_the_whole() {
    let root = bucket(&[("train/000.tar", 3_000_001), ("empty", 0)]);
    let server = S3::start(root.path());
    let store = s3(server.address, StoreOptions::default());
    everything_reads(&store, "train/000.tar", &content(3_000_001, 0));
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
    everything_reads(&store, &path, &content(3_000_001, 0));
    let error = store.list("bucket/").unwrap_err();
    assert!(matches!(store_error(&error), StoreError::CannotList { .. }), "{error}");
    assert!(error.to_string().contains("{000..146}"), "{error}");
}

#[test]
fn gcs_and_azure_read_parts_and_the_whole() {
    let (root, scratch) = (bucket(&[("train/000.tar", 1_500_000)]), tempfile::tempdir().unwrap());
    // To read an object needs of these no more than a path, a range and a tag: what any web server has.
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
        everything_reads(&store, &path, &content(1_500_000, 0));
    }
}

#[test]
#[ignore = "the child of another test"]
fn child_that_trusts() {
    let (store, path) = Store::open(&std::env::var("STORE_URL").unwrap(), quick()).unwrap();
    everything_reads(&store, &path, &content(1_500_000, 0));
}

#[test]
fn https_reads_where_the_certificate_is_trusted() {
    let (root, scratch) = (bucket(&[("x", 1_500_000)]), tempfile::tempdir().unwrap());
    let Some(server) = Nginx::start_tls(root.path(), scratch.path()) else { return };
    let url = format!("https://{}/bucket/x", server.address);
    let (store, path) = Store::open(&url, StoreOptions { attempts: 2, ..quick() }).unwrap();
    let error = store.object(&path).unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
    let certificate = scratch.path().join("certificate").display().to_string();
    let trusting = child("child_that_trusts", &[("STORE_URL", url), ("SSL_CERT_FILE", certificate)]).status();
    assert!(trusting.unwrap().success());
}

#[test]
fn a_listing_names_what_begins_with_a_text() {
    let shards = [("train-000.tar", 10), ("train-001.tar", 20), ("train/x", 1), ("val-000.tar", 5), ("trained", 3)];
    let root = bucket(&shards);
    for i in 0..2100 {
        put(root.path(), &format!("many/{i:04}"), b"x");
    }
    let server = S3::start(root.path());
    let store = s3(server.address, StoreOptions::default());
    let listed = |path: &str, bytes| Listed { path: path.to_owned(), bytes };
    assert_eq!(store.list("train-").unwrap(), [listed("train-000.tar", 10), listed("train-001.tar", 20)]);
    assert_eq!(store.list("nothing").unwrap(), []);
    let many = store.list("many/").unwrap();
    assert_eq!((many.len(), &many[0], &many[2099]), (2100, &listed("many/0000", 1), &listed("many/2099", 1)));
}

#[test]
fn what_will_not_pass_fails_at_once_with_advice() {
    let root = bucket(&[("x", 100)]);
    let server = S3::start(root.path());
    let mut settings = s3_settings(server.address);
    settings.last_mut().unwrap().1 = "another secret".to_owned();
    let options = StoreOptions { settings: settings.clone(), ..StoreOptions::default() };
    let (store, path) = Store::open("s3://bucket/x", options).unwrap();
    let error = store.object(&path).unwrap_err().to_string();
    assert!(error.contains("403") && error.contains("1 attempt") && error.contains("AWS_SECRET_ACCESS_KEY"), "{error}");
    assert!(!error.contains("another secret"), "{error}");
    // Nobody: the machine is asked whether it has a role, and there is nobody to be asked.
    let nowhere = vec![("AWS_METADATA_ENDPOINT".to_owned(), "http://127.0.0.1:9".to_owned())];
    let (store, path) = Store::open("s3://bucket/x", StoreOptions { settings: nowhere, ..quick() }).unwrap();
    let error = store.object(&path).unwrap_err().to_string();
    assert!(error.contains("3 attempts") && error.contains("AWS_SKIP_SIGNATURE"), "{error}");
    let unknown = StoreOptions { settings: vec![("AWS_NONSENSE".into(), "1".into())], ..StoreOptions::default() };
    let error = Store::open("s3://bucket/x", unknown).unwrap_err().to_string();
    assert!(error.contains("AWS_NONSENSE is no setting"), "{error}");
}

#[test]
fn a_changed_object_is_an_error_with_the_numbers() {
    let (root, scratch) = (bucket(&[("x", 5000)]), tempfile::tempdir().unwrap());
    let server = S3::start(root.path());
    let nginx = Nginx::start(root.path(), scratch.path());
    let mut stores = vec![(s3(server.address, quick()), "x")];
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
fn it_reads_from_blocking_threads_of_other_runtimes() {
    let root = bucket(&[("x", 100_000)]);
    let server = S3::start(root.path());
    let object = s3(server.address, quick()).object("x").unwrap();
    // As the pipeline reads: on the blocking threads of a runtime that has no other.
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
    // The last one to have the store may let go of it in asynchronous code.
    pipeline.block_on(async move { drop(object) });
}

/// A part of this program that another process runs.
fn child(name: &str, variables: &[(&str, String)]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--ignored", "--nocapture"]);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    command
}

#[test]
#[ignore = "the child of another test"]
fn child_of_the_environment() {
    let (store, path) = Store::open("s3://bucket/x", StoreOptions::default()).unwrap();
    assert!(read(&store.object(&path).unwrap(), 10, 90).unwrap() == content(100, 0)[10..]);
}

#[test]
fn credentials_and_place_come_from_the_environment() {
    let root = bucket(&[("x", 100)]);
    let server = S3::start(root.path());
    let settings = s3_settings(server.address);
    let variables: Vec<(&str, String)> = settings.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    assert!(child("child_of_the_environment", &variables).status().unwrap().success());
    let wrong: Vec<(&str, String)> =
        variables.into_iter().map(|(name, value)| (name, value.replace(servers::SECRET, "wrong"))).collect();
    assert!(!child("child_of_the_environment", &wrong).stderr(std::process::Stdio::null()).status().unwrap().success());
}
