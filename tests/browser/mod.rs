//! Opens the page of a report in a headless Chromium and measures it: nothing overflows or overlaps, text is large
//! enough and has enough contrast, and nothing is fetched.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "what a test file shares")]

use std::env;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::skip::{Missing, skip};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tempfile::tempdir;

/// Timeout of a run of the browser, which usually takes two seconds.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The measuring script. It runs in a copy of the page without its content security policy, and reports to the frame
/// around it.
const MEASURE: &str = r#"<script>
addEventListener('load', () => {
  const faults = [];
  const inside = (a, b) =>
    a.left >= b.left - 1 && a.right <= b.right + 1 && a.top >= b.top - 1 && a.bottom <= b.bottom + 1;
  const rgb = text => (text.match(/[\d.]+/g) || []).map(Number);
  const linear = v => v <= 10 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = text => {
    const [r, g, b] = rgb(text).map(linear);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const contrast = (a, b) => {
    const [x, y] = [light(a), light(b)];
    return (Math.max(x, y) + .05) / (Math.min(x, y) + .05);
  };
  const behind = node => {
    for (; node; node = node.parentElement) {
      const at = getComputedStyle(node).backgroundColor, parts = rgb(at);
      if (parts.length == 3 || parts[3] > 0) return at;
    }
    return 'rgb(255, 255, 255)';
  };
  let least = Infinity, smallest = Infinity, texts = 0;
  for (const svg of document.querySelectorAll('svg')) {
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    const name = svg.querySelector('title').textContent;
    if (box.width < 200 || box.height < 100) faults.push(name + ' is ' + box.width + ' x ' + box.height);
    if (box.right > innerWidth + 1 || box.left < -1) faults.push(name + ' is not within the window');
    const all = [...svg.querySelectorAll('text')].map(text => [text, text.getBoundingClientRect()]);
    for (const [text, at] of all) {
      texts += 1;
      const style = getComputedStyle(text), told = name + ': ' + text.textContent;
      smallest = Math.min(smallest, parseFloat(style.fontSize) * scale);
      const ratio = contrast(style.fill, getComputedStyle(svg.querySelector('.sheet')).fill);
      least = Math.min(least, ratio);
      if (ratio < 4.5) faults.push(told + ' has a contrast of ' + ratio);
      if (!inside(at, box)) faults.push(told + ' stands out of its chart');
    }
    all.forEach(([a, x], n) => all.slice(n + 1).forEach(([b, y]) => {
      const across = Math.min(x.right, y.right) - Math.max(x.left, y.left);
      const down = Math.min(x.bottom, y.bottom) - Math.max(x.top, y.top);
      // Boxes of text are higher than what is written in them.
      if (across > 0.5 && down > 4 * scale) faults.push(name + ': ' + a.textContent + ' overlaps ' + b.textContent);
    }));
  }
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    const parent = node.parentElement;
    if (!node.textContent.trim() || parent.closest('svg, script, pre') || !parent.getClientRects().length) continue;
    const style = getComputedStyle(parent), size = parseFloat(style.fontSize);
    const ratio = contrast(style.color, behind(parent));
    least = Math.min(least, ratio);
    if (ratio < 4.5) faults.push(node.textContent + ' has a contrast of ' + ratio);
    if (size < 14) faults.push(node.textContent + ' is ' + size + ' px high');
    const box = parent.closest('.wide') ? null : parent.getBoundingClientRect();
    const out = box && (box.right > innerWidth + 1 || box.left < -1);
    if (out) faults.push(node.textContent + ' is not within the window');
  }
  const told = document.createElement('pre');
  told.id = 'measured';
  told.textContent = JSON.stringify({ faults, least, smallest, texts, charts: document.querySelectorAll('svg').length,
    width: innerWidth, scroll: document.documentElement.scrollWidth,
    font: parseFloat(getComputedStyle(document.body).fontSize),
    dark: matchMedia('(prefers-color-scheme: dark)').matches, background: light(behind(document.body)),
    fetched: [...performance.getEntriesByType('resource').map(entry => entry.name),
      ...[...document.querySelectorAll('[src], [href], link, object')].map(node => node.outerHTML)] });
  parent.document.body.append(told);
});
</script>"#;

/// The browser to test with: FEEDSTOCK_CHROMIUM, or one in PATH.
pub fn chromium() -> Option<PathBuf> {
    if let Some(named) = env::var_os("FEEDSTOCK_CHROMIUM") {
        return Some(named.into());
    }
    let folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH")?).collect();
    let found = |name: &str| folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
    ["chromium", "chromium-browser", "google-chrome"].into_iter().find_map(found)
}

/// Runs the browser and returns its output. All of its processes are ended in any case.
fn browse(browser: &Path, more: &[String]) -> String {
    let folder = tempdir().expect("a folder");
    let (out, err) = (folder.path().join("out"), folder.path().join("err"));
    let mut command = Command::new(browser);
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
        .args(more)
        .stdin(Stdio::null())
        // Files: a pipe could fill up, or be held open by a process that is left over.
        .stdout(File::create(&out).expect("a file"))
        .stderr(File::create(&err).expect("a file"))
        .process_group(0);
    let mut child = command.spawn().expect("the browser starts");
    let since = Instant::now();
    let ended = loop {
        match child.try_wait().expect("it can be waited for") {
            Some(status) => break Some(status),
            None if since.elapsed() > TIMEOUT => break None,
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    // Processes that it has left over, too.
    let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    let _ = child.wait();
    let said = fs::read_to_string(&err).unwrap_or_default();
    let ended = ended.unwrap_or_else(|| panic!("the browser has not ended after {TIMEOUT:?}: {said}"));
    assert!(ended.success(), "the browser failed: {said}");
    String::from_utf8_lossy(&fs::read(&out).expect("it printed something")).into_owned()
}

/// Measurements of a page in a frame of this width: the browser's windows cannot be as narrow as a phone.
fn measured(browser: &Path, html: &str, width: u32, scheme: u32) -> Value {
    let folder = tempdir().expect("a folder");
    let frame = folder.path().join("frame.html");
    let html = html.replace('&', "&amp;").replace('"', "&quot;");
    let around =
        r#"<!DOCTYPE html><meta charset="utf-8"><style>:root{color-scheme:light dark}iframe{border:0}</style><body>"#;
    let framed = format!(r#"{around}<iframe width="{width}" height="900" srcdoc="{html}"></iframe></body>"#);
    fs::write(&frame, framed).expect("written");
    let dom = browse(
        browser,
        &[
            "--window-size=1300,1000".to_owned(),
            format!("--blink-settings=preferredColorScheme={scheme}"),
            "--dump-dom".to_owned(),
            format!("file://{}", frame.display()),
        ],
    );
    let told = dom.split_once(r#"<pre id="measured">"#).and_then(|(_, rest)| rest.split_once("</pre>"));
    let (told, _) = told.unwrap_or_else(|| panic!("nothing was measured: {dom}"));
    let told = told.replace("&lt;", "<").replace("&gt;", ">").replace("&nbsp;", " ").replace("&amp;", "&");
    serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"))
}

/// Checks a page at the width of a phone and of a desktop, light and dark, and in print. Without a browser it
/// skips.
pub fn check_page(page: &Path, charts: u64) {
    let Some(browser) = chromium() else {
        skip(&Missing::Program("Chromium, in PATH or named by FEEDSTOCK_CHROMIUM"));
        return;
    };
    let page = page.canonicalize().expect("the page is there");
    let html = fs::read_to_string(&page).expect("read");
    let (from, to) = (html.find("<meta http-equiv=").expect("a policy"), html.find("<title>").expect("a title"));
    assert!(html[from..to].contains("default-src 'none'"), "the page forbids itself to fetch and to run anything");
    let folder = tempdir().expect("a folder");
    let end = html.rfind("</body>").expect("a body");
    let copy = [&html[..from], &html[to..end], MEASURE, &html[end..]].concat();

    for (width, scheme) in [(360, 1), (360, 0), (1200, 1), (1200, 0)] {
        let told = measured(&browser, &copy, width, scheme);
        let number = |key: &str| told[key].as_f64().unwrap_or(f64::NAN);
        assert_eq!(told["faults"], serde_json::json!([]), "at {width} px: {told}");
        assert_eq!((number("width"), &told["charts"]), (f64::from(width), &charts.into()), "{told}");
        assert!(number("scroll") <= f64::from(width), "it scrolls sideways: {told}");
        assert!(number("font") >= 14.0, "too small: {told}");
        assert!(charts == 0 || (number("smallest") >= 9.0 && number("texts") > 10.0), "too small: {told}");
        assert!(number("least") >= 4.5, "too pale: {told}");
        let dark = scheme == 0;
        assert_eq!((&told["dark"], number("background") < 0.1), (&dark.into(), dark), "{told}");
        assert_eq!(told["fetched"], serde_json::json!([]), "at {width} px: {told}");
    }

    let paper = folder.path().join("page.pdf");
    browse(&browser, &[format!("--print-to-pdf={}", paper.display()), format!("file://{}", page.display())]);
    let paper = String::from_utf8_lossy(&fs::read(&paper).expect("printed")).into_owned();
    let pages = paper.match_indices("/Type /Page").filter(|(at, found)| !paper[at + found.len()..].starts_with('s'));
    let pages = pages.count();
    assert!((1..=8).contains(&pages), "{pages} pages");
}
