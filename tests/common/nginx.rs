//! nginx on loopback.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "it is a part of test programs")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "in a test a panic is the report")]

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::skip::{Missing, skip};

/// nginx process that serves a folder.
pub struct Nginx {
    pub address: SocketAddr,
    child: Child,
}

impl Nginx {
    /// Starts nginx. Prints a line and returns `None` if it is not installed.
    pub fn start(root: &Path, scratch: &Path) -> Option<Self> {
        Self::start_with(root, scratch, "", "")
    }

    /// Starts nginx with TLS and a new self-signed certificate, `scratch/certificate`.
    pub fn start_tls(root: &Path, scratch: &Path) -> Option<Self> {
        let (certificate, key) = (scratch.join("certificate"), scratch.join("key"));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]);
        openssl.args(["-subj", "/CN=tests", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout"]).arg(&key);
        openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        if !openssl.arg("-out").arg(&certificate).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
            skip(&Missing::Program("openssl"));
            return None;
        }
        let lines = format!("ssl_certificate {}; ssl_certificate_key {};", certificate.display(), key.display());
        Self::start_with(root, scratch, " ssl", &lines)
    }

    fn start_with(root: &Path, scratch: &Path, protocol: &str, lines: &str) -> Option<Self> {
        if Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_err() {
            skip(&Missing::Program("nginx (apt-get install nginx-light)"));
            return None;
        }
        // A port that was free a moment ago: nginx cannot choose one.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (root, at) = (root.display(), scratch.display());
        let user = if fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0) {
            "user root;"
        } else {
            ""
        };
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {at}/{name};"))
            .concat();
        let config = format!(
            "{user} daemon off; pid {at}/pid; error_log {at}/errors; worker_processes 2; events {{}} \
             http {{ access_log off; {temporary} server {{ listen {address}{protocol}; root {root}; {lines} }} }}"
        );
        let file = scratch.join("nginx.conf");
        fs::write(&file, config).unwrap();
        let mut nginx = Command::new("nginx");
        let nginx = nginx.arg("-e").arg(scratch.join("errors")).arg("-c").arg(&file);
        let nginx = Nginx { address, child: nginx.spawn().unwrap() };
        for _ in 0..200 {
            if TcpStream::connect(address).is_ok() {
                return Some(nginx);
            }
            thread::sleep(Duration::from_millis(25));
        }
        panic!("nginx does not answer: {:?}", fs::read_to_string(scratch.join("errors")));
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // TERM, because after KILL its workers would stay.
        let _ = Command::new("kill").arg("-TERM").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}
