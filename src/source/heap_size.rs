//! Heap sizes of the lists that sources hold.

use std::mem::size_of;

use super::Unreadable;

/// Heap memory of a list of strings, bytes.
pub(super) fn strings(list: &Vec<String>) -> usize {
    list.capacity() * size_of::<String>() + list.iter().map(String::capacity).sum::<usize>()
}

/// Heap memory of a list of unreadable entries, bytes.
pub(super) fn unreadable(list: &Vec<Unreadable>) -> usize {
    list.capacity() * size_of::<Unreadable>()
        + list.iter().map(|entry| entry.path.capacity() + entry.cause.capacity()).sum::<usize>()
}
