//! HTTP proxy that injects faults of networks and servers: delays, refusals, truncated, stalled and false answers.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "it is a part of test programs")]
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Fault of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    Pass,
    /// The first byte of the answer is delayed.
    Late(Duration),
    /// The server refuses, with these headers.
    Status(u16, &'static str),
    /// The answer ends after this many bytes of its body.
    Short(usize),
    /// The connection is reset before the answer.
    Reset,
    /// The answer stalls after this many bytes of its body, and the connection stays open.
    Stall(usize),
    /// The answer has a shorter range, with a matching header.
    ShorterRange,
    /// The last byte is missing, and the header names the whole range.
    Trimmed,
    /// The answer has one byte more than the range.
    Padded,
    /// The bytes are right, and the header names another range.
    MislabelledRange,
    /// The status says that the answer is the whole object. It is, unless the request is signed.
    WholeInstead,
}

/// Request as seen by the proxy.
#[derive(Clone, Debug)]
pub struct Request {
    /// Number of the request.
    pub number: usize,
    pub method: String,
    pub path: String,
    pub range: Option<(u64, u64)>,
}

type Plan = Box<dyn Fn(&Request) -> Fault + Send>;

struct Shared {
    server: SocketAddr,
    plan: Mutex<Plan>,
    count: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
    ended: AtomicBool,
}

pub struct FaultyProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl FaultyProxy {
    pub fn start(server: SocketAddr, plan: impl Fn(&Request) -> Fault + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server,
            plan: Mutex::new(Box::new(plan)),
            count: AtomicUsize::new(0),
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.ended.load(Ordering::Relaxed) {
                    return;
                }
                let (client, shared) = (client.unwrap(), Arc::clone(&accepting));
                // Clients may disconnect at any point.
                thread::spawn(move || drop(serve(client, &shared)));
            }
        });
        FaultyProxy { address, shared }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn plan(&self, plan: impl Fn(&Request) -> Fault + Send + 'static) {
        *self.shared.plan.lock().unwrap() = Box::new(plan);
    }

    /// Number of requests so far.
    pub fn count(&self) -> usize {
        self.shared.count.load(Ordering::Relaxed)
    }

    /// Maximum number of concurrent requests so far.
    pub fn concurrent_max(&self) -> usize {
        self.shared.most.load(Ordering::Relaxed)
    }
}

impl Drop for FaultyProxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(mut client: TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    while let Some(head) = peek_head(&client)? {
        let text = String::from_utf8_lossy(&head).into_owned();
        let mut words = text.split(' ');
        let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
        let number = shared.count.fetch_add(1, Ordering::Relaxed);
        let request = Request { number, method, path, range: range_of(&text) };
        let fault = (shared.plan.lock().unwrap())(&request);
        if fault == Fault::Reset {
            // Closing a connection with unread bytes resets it.
            return Ok(());
        }
        client.read_exact(&mut vec![0; head.len()])?;
        let now = shared.now.fetch_add(1, Ordering::Relaxed) + 1;
        shared.most.fetch_max(now, Ordering::Relaxed);
        let done = answer(&mut client, &text, &request, &fault, shared.server);
        shared.now.fetch_sub(1, Ordering::Relaxed);
        if !done? {
            return Ok(());
        }
    }
    Ok(())
}

/// Returns true if the connection can be reused.
fn answer(
    client: &mut TcpStream,
    text: &str,
    request: &Request,
    fault: &Fault,
    server: SocketAddr,
) -> io::Result<bool> {
    if let Fault::Status(status, headers) = fault {
        let body = if request.method == "HEAD" { "" } else { "refused" };
        let length = body.len();
        write!(client, "HTTP/1.1 {status} Refused\r\n{headers}content-length: {length}\r\n\r\n{body}")?;
        return Ok(true);
    }
    if let Fault::Late(delay) = fault {
        thread::sleep(*delay);
    }
    let (mut head, mut body) = forward(server, &forwarded_request(text, fault))?;
    if let Some((from, to)) = request.range {
        let range = |from, to| format!("bytes {from}-{to}/");
        let length = |bytes: usize| format!("content-length: {bytes}\r\n");
        match fault {
            Fault::ShorterRange | Fault::Trimmed if body.len() > 1 => {
                if *fault == Fault::ShorterRange {
                    head = head.replace(&range(from, to), &range(from, to - 1));
                }
                head = head.replace(&length(body.len()), &length(body.len() - 1));
                body.pop();
            }
            Fault::Padded => {
                head = head.replace(&length(body.len()), &length(body.len() + 1));
                body.push(7);
            }
            Fault::MislabelledRange => head = head.replace(&range(from, to), &range(from + 1, to + 1)),
            Fault::WholeInstead => {
                let lines = head.trim_end().split("\r\n");
                let lines = lines.filter(|line| !line.to_ascii_lowercase().starts_with("content-range:"));
                head = lines.collect::<Vec<_>>().join("\r\n").replacen("206 Partial Content", "200 OK", 1) + "\r\n\r\n";
            }
            _ => {}
        }
    }
    client.write_all(head.as_bytes())?;
    match fault {
        Fault::Short(bytes) if *bytes < body.len() => {
            client.write_all(&body[..*bytes])?;
            Ok(false)
        }
        Fault::Stall(bytes) if *bytes < body.len() => {
            client.write_all(&body[..*bytes])?;
            // Until the client disconnects.
            let mut rest = [0; 1];
            let _ = client.set_read_timeout(Some(Duration::from_secs(30)));
            let _ = client.read(&mut rest);
            Ok(false)
        }
        _ => client.write_all(&body).map(|()| true),
    }
}

/// Request for the server, with one request per connection, so that the answer ends with the connection.
fn forwarded_request(text: &str, fault: &Fault) -> String {
    let signed = text.to_ascii_lowercase().contains("\r\nauthorization:");
    let goes = |line: &&str| {
        let name = line.split(':').next().unwrap().to_ascii_lowercase();
        name != "connection" && !(name == "range" && *fault == Fault::WholeInstead && !signed)
    };
    let lines: Vec<&str> = text.trim_end().split("\r\n").filter(goes).collect();
    lines.join("\r\n") + "\r\nconnection: close\r\n\r\n"
}

fn forward(server: SocketAddr, request: &str) -> io::Result<(String, Vec<u8>)> {
    let mut server = TcpStream::connect(server)?;
    server.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or(io::ErrorKind::InvalidData)? + 4;
    let body = answer.split_off(end);
    let head = String::from_utf8_lossy(&answer).into_owned();
    // The connection to the client stays open.
    let lines = head.trim_end().split("\r\n").filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
    Ok((lines.collect::<Vec<_>>().join("\r\n") + "\r\n\r\n", body))
}

/// Head of the next request, left in the socket. `None` if the client has disconnected.
fn peek_head(client: &TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut head = vec![0; 64 << 10];
    for _ in 0..10_000 {
        let bytes = client.peek(&mut head)?;
        if bytes == 0 {
            return Ok(None);
        }
        if let Some(end) = head[..bytes].windows(4).position(|window| window == b"\r\n\r\n") {
            head.truncate(end + 4);
            return Ok(Some(head));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn range_of(text: &str) -> Option<(u64, u64)> {
    let line = text.lines().find(|line| line.to_ascii_lowercase().starts_with("range:"))?;
    let (from, to) = line.split_once("bytes=")?.1.trim().split_once('-')?;
    Some((from.parse().ok()?, to.parse().ok()?))
}
