//! Owns what processes write to each other: the greeting, and the pieces of a vector with their heads. It must never
//! take a piece of one sum for one of another.

use burn_communication::Message;

/// The number of the sum and the length of the vector, in front of the numbers of a piece.
const HEADER_BYTES: usize = 16;
/// In place of a sum's number: what follows is a text, and there will be no sum any more.
pub(super) const FAREWELL: u64 = u64::MAX;

/// What a process says of itself when it comes.
pub(super) struct Hello {
    pub(super) rank: usize,
    pub(super) processes: usize,
    pub(super) threads: usize,
}

const HELLO: &str = "feedstock-communicator-1";

impl Hello {
    pub(super) fn message(&self) -> Message {
        let Hello { rank, processes, threads } = self;
        Message::new(format!("{HELLO} {rank} {processes} {threads}").into_bytes().into())
    }

    pub(super) fn read(data: &[u8]) -> Option<Hello> {
        let mut words = std::str::from_utf8(data).ok()?.strip_prefix(HELLO)?.split_whitespace().map(str::parse);
        let mut next = || words.next()?.ok();
        Some(Hello { rank: next()?, processes: next()?, threads: next()? })
    }
}

pub(super) fn pack(number: u64, length: usize, piece: &[f32]) -> Message {
    let mut data = Vec::with_capacity(HEADER_BYTES + size_of_val(piece));
    data.extend(number.to_le_bytes());
    data.extend((length as u64).to_le_bytes());
    if cfg!(target_endian = "little") {
        data.extend_from_slice(bytemuck::cast_slice(piece));
    } else {
        data.extend(piece.iter().flat_map(|value| value.to_le_bytes()));
    }
    Message::new(data.into())
}

/// The numbers of a piece, as bytes; or why they are not those of this sum.
pub(super) fn unpack(data: &[u8], number: u64, length: usize) -> Result<&[u8], String> {
    let Some((header, piece)) = data.split_at_checked(HEADER_BYTES) else {
        return Err(format!("a message of {} bytes", data.len()));
    };
    let word = |at: usize| header[at..at + 8].iter().rev().fold(0_u64, |word, byte| (word << 8) | u64::from(*byte));
    match (word(0), word(8)) {
        (FAREWELL, _) => Err(String::from_utf8_lossy(piece).into_owned()),
        (theirs, _) if theirs != number => Err(format!("it is at exchange {theirs}, this rank at {number}")),
        (_, theirs) if theirs != length as u64 => Err(format!("it gave {theirs} numbers, this rank has {length}")),
        _ => Ok(piece),
    }
}
