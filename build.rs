//! Compiles the C side of the JPEG decoder, against the headers of the library that `turbojpeg-sys` has built.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "turbo")]
    shim();
}

#[cfg(feature = "turbo")]
fn shim() {
    const SHIM: &str = "src/decode/jpeg/turbo/shim.c";
    println!("cargo::rerun-if-changed={SHIM}");
    println!("cargo::rerun-if-changed=src/decode/jpeg/turbo/huffman.h");
    println!("cargo::rerun-if-env-changed=DEP_TURBOJPEG_INCLUDE");
    let mut build = cc::Build::new();
    if let Ok(folders) = std::env::var("DEP_TURBOJPEG_INCLUDE") {
        build.includes(folders.split(','));
    }
    // A picture is a thousand calls: what is called is optimised in every profile.
    build.file(SHIM).std("c11").opt_level(3).flag_if_supported("-Wextra").compile("feedstock_jpeg");
}
