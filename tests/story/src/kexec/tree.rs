//! A flattened device tree with other properties in `/chosen` (Devicetree Specification 0.4, chapter 5).

const BEGIN: u32 = 1;
const END: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;
const FINISH: u32 = 9;

/// Fields of the header, by word.
const TOTAL: usize = 1;
const STRUCTURE: usize = 2;
const STRINGS: usize = 3;
const STRINGS_SIZE: usize = 8;
const STRUCTURE_SIZE: usize = 9;

/// What the kernel before has left there, and must not be believed again.
const STALE: [&str; 2] = ["linux,elfcorehdr", "linux,usable-memory-range"];

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn text(bytes: &[u8], at: usize) -> Option<&str> {
    let rest = bytes.get(at..)?;
    std::str::from_utf8(rest.split(|byte| *byte == 0).next()?).ok()
}

/// The tree with these properties of `/chosen` in the place of those of the same names. `None` if it is malformed.
pub fn with_chosen(tree: &[u8], chosen: &[(&str, Vec<u8>)]) -> Option<Vec<u8>> {
    let field = |index: usize| Some(word(tree, 4 * index)? as usize);
    let (structure, strings) = (field(STRUCTURE)?, field(STRINGS)?);
    let mut names = tree.get(strings..strings + field(STRINGS_SIZE)?)?.to_vec();
    let mut out = Vec::new();
    let (mut at, mut depth, mut inside) = (structure, 0, false);
    loop {
        let token = word(tree, at)?;
        let mut end = at + 4;
        let mut keep = true;
        match token {
            BEGIN => {
                let name = text(tree, end)?;
                end = (end + name.len() + 1).next_multiple_of(4);
                depth += 1;
                inside = depth == 2 && name == "chosen";
            }
            END => {
                depth -= 1;
                inside = false;
            }
            PROPERTY => {
                let name = text(tree, strings + word(tree, at + 8)? as usize)?;
                end = (end + 8 + word(tree, at + 4)? as usize).next_multiple_of(4);
                keep = !inside || !STALE.contains(&name) && chosen.iter().all(|(new, _)| *new != name);
            }
            NOP => keep = false,
            FINISH => {}
            _ => return None,
        }
        if keep {
            out.extend(tree.get(at..end)?);
        }
        if token == BEGIN && inside {
            for (name, value) in chosen {
                for head in [PROPERTY, value.len() as u32, names.len() as u32] {
                    out.extend(head.to_be_bytes());
                }
                out.extend(value);
                out.resize(out.len().next_multiple_of(4), 0);
                names.extend([name.as_bytes(), b"\0"].concat());
            }
        }
        at = end;
        if token == FINISH {
            break;
        }
    }
    // The header and the reservations stay in front of the structure block, which is the next in a tree of Linux' or ours;
    // the strings go behind.
    let mut new = tree.get(..structure)?.to_vec();
    if strings < structure {
        return None;
    }
    let (structure_size, strings_at) = (out.len(), structure + out.len());
    new.extend(out);
    new.extend(&names);
    let total = new.len();
    for (index, value) in
        [(TOTAL, total), (STRINGS, strings_at), (STRINGS_SIZE, names.len()), (STRUCTURE_SIZE, structure_size)]
    {
        new.get_mut(4 * index..4 * index + 4)?.copy_from_slice(&(value as u32).to_be_bytes());
    }
    Some(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with `/chosen`, which has one property `bootargs`, and a node after it.
    fn tree() -> Vec<u8> {
        let words = |list: &[u32]| list.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        let mut structure = words(&[BEGIN, 0, BEGIN]);
        structure.extend(b"chosen\0\0");
        structure.extend(words(&[PROPERTY, 4, 0]));
        structure.extend(b"old\0");
        structure.extend(words(&[NOP, END, BEGIN]));
        structure.extend(b"psci\0\0\0\0");
        structure.extend(words(&[END, END, FINISH]));
        let strings = b"bootargs\0";
        let at = 40 + 16;
        let total = at + structure.len() + strings.len();
        let header =
            [0xd00d_feed, total, at, at + structure.len(), 40, 17, 16, 0, strings.len(), structure.len()];
        let mut tree = words(&header.map(|field| field as u32));
        tree.extend([0; 16]);
        tree.extend(structure);
        tree.extend(strings);
        tree
    }

    fn count(tree: &[u8], what: &[u8]) -> usize {
        tree.windows(what.len()).filter(|window| *window == what).count()
    }

    #[test]
    fn a_property_is_replaced_and_others_stay() {
        let new = with_chosen(&tree(), &[("bootargs", b"new\0".to_vec()), ("linux,initrd-end", vec![1; 8])])
            .unwrap();
        assert_eq!((count(&new, b"old\0"), count(&new, b"new\0"), count(&new, &[1; 8])), (0, 1, 1));
        assert_eq!((count(&new, b"psci"), count(&new, b"linux,initrd-end\0")), (1, 1));
        assert_eq!(word(&new, 4).unwrap() as usize, new.len());
        // It can be read and changed again.
        let again = with_chosen(&new, &[("bootargs", b"old\0".to_vec())]).unwrap();
        assert_eq!((count(&again, b"new\0"), count(&again, b"old\0"), count(&again, &[1; 8])), (0, 1, 1));
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let mut cut = tree();
        cut.truncate(80);
        assert!(with_chosen(&cut, &[]).is_none());
        assert!(with_chosen(&[], &[]).is_none());
    }
}
