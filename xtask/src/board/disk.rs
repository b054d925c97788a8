//! A disk image: a DOS partition table with one bootable FAT32 partition that holds the files of a folder.

use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};

const SECTOR: u64 = 512;
/// Where the partition starts: the usual place, which suits every medium.
const START: u64 = 1 << 20;
/// The smallest partition: FAT32 wants 65,525 clusters.
const LEAST: u64 = 96 << 20;
/// Bytes in a cluster.
const CLUSTER: u32 = 1024;
/// FAT32, addressed by sector number.
const PARTITION_TYPE: u8 = 0x0c;
/// "More than can be said": cylinder, head and sector of a partition that is addressed by sector number.
const NO_CHS: [u8; 3] = [0xfe, 0xff, 0xff];

/// Writes a disk image with the files of `folder` (no folders in it) to `file`.
///
/// # Errors
/// If a file cannot be read or the image not be written.
pub fn write(folder: &Path, file: &Path) -> Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("a file without a name")?;
        files.push((
            name.to_owned(),
            fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?,
        ));
    }
    files.sort();
    let disk = image(&files).with_context(|| format!("cannot make {}", file.display()))?;
    fs::write(file, disk).with_context(|| format!("cannot write {}", file.display()))
}

fn image(files: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let contents: u64 = files.iter().map(|(_, bytes)| bytes.len() as u64 + u64::from(CLUSTER)).sum();
    // A quarter of room for what a person adds; whole MiB.
    let size = (contents + contents / 4).max(LEAST).next_multiple_of(1 << 20);
    let mut disk = vec![0; (START + size) as usize];
    disk[..SECTOR as usize].copy_from_slice(&partition_table(START / SECTOR, size / SECTOR)?);
    let (_, partition) = disk.split_at_mut(START as usize);
    fill(partition, files)?;
    Ok(disk)
}

fn fill(partition: &mut [u8], files: &[(String, Vec<u8>)]) -> Result<()> {
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(CLUSTER)
        .volume_label(*b"TENURE     ");
    fatfs::format_volume(Cursor::new(&mut *partition), options)?;
    let volume = FileSystem::new(Cursor::new(partition), FsOptions::new())?;
    for (name, bytes) in files {
        let mut file = volume.root_dir().create_file(name)?;
        file.write_all(bytes).with_context(|| format!("no room for {name}"))?;
        file.flush()?;
    }
    volume.unmount()?;
    Ok(())
}

/// The first sector: one bootable partition, and nothing that a PC would run.
fn partition_table(start: u64, sectors: u64) -> Result<[u8; SECTOR as usize]> {
    ensure!(start + sectors <= u64::from(u32::MAX), "a DOS partition table ends at 2 TiB");
    let mut table = [0; SECTOR as usize];
    let entry = &mut table[446..462];
    entry[0] = 0x80;
    entry[1..4].copy_from_slice(&NO_CHS);
    entry[4] = PARTITION_TYPE;
    entry[5..8].copy_from_slice(&NO_CHS);
    entry[8..12].copy_from_slice(&(start as u32).to_le_bytes());
    entry[12..16].copy_from_slice(&(sectors as u32).to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn files_can_be_read_back_from_the_partition() {
        let files =
            [("boot.scr".to_owned(), vec![7; 3000]), ("bcm2711-rpi-4-b.dtb".to_owned(), b"tree".to_vec())];
        let mut disk = image(&files).unwrap();
        assert_eq!(disk[510..512], [0x55, 0xaa]);
        assert_eq!(disk[446 + 8..446 + 12], 2048u32.to_le_bytes());
        let partition = &mut disk[START as usize..];
        assert_eq!(&partition[82..90], b"FAT32   ");
        let volume = FileSystem::new(Cursor::new(partition), FsOptions::new()).unwrap();
        for (name, bytes) in files {
            let mut read = Vec::new();
            volume.root_dir().open_file(&name).unwrap().read_to_end(&mut read).unwrap();
            assert_eq!(read, bytes, "{name}");
        }
    }

    #[test]
    fn a_large_file_makes_a_larger_disk() {
        let disk = image(&[("Image".to_owned(), vec![1; 120 << 20])]).unwrap();
        assert!(disk.len() > 150 << 20);
    }
}
