//! Images that answers only name by url: fetched while they can be, since such urls live an hour.
//!
//! A job's journal is followed as it grows. Downloading is a step of its own with its own retries: it
//! never asks the model again, and an image that can't be had leaves its url in the record. The files
//! are all the state there is; following again from the start only fetches what is not there.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use thiserror::Error as ThisError;
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use super::images::{Answer, Gallery, Source, may_hold_images};
use super::input::Input;
use super::{Error, blocking};
use crate::provider::{DownloadError, Provider};
use crate::pulse::Member;

/// Tries of one image.
const TRIES: u32 = 3;
/// The wait before the second try; four times as long before the third.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Downloads of one job at once, so that one slow job leaves room for others.
const DOWNLOADS_OF_JOB: usize = 8;
/// Downloads of all jobs at once: each may hold as many bytes as an image may have.
const DOWNLOADS: usize = 16;
/// Images found before their downloads begin: bounds what a batch holds in memory.
const BATCH_IMAGES: usize = 64;
/// Bytes of the journal read in one go on a blocking thread, so that a stop need not wait long.
const BATCH_BYTES: u64 = 64 << 20;

/// Fetches what a provider's answers point to.
pub trait Download: Send + Sync + fmt::Debug {
    /// The bytes at `url`, at most `max`.
    fn download<'a>(&'a self, url: &'a str, max: u64) -> BoxFuture<'a, Result<Bytes, DownloadFailed>>;
}

impl Download for Provider {
    fn download<'a>(&'a self, url: &'a str, max: u64) -> BoxFuture<'a, Result<Bytes, DownloadFailed>> {
        let failed = |error: DownloadError| DownloadFailed {
            is_retryable: error.is_worth_retrying(),
            message: error.to_string(),
        };
        Self::download(self, url, max).map(move |downloaded| downloaded.map_err(failed)).boxed()
    }
}

/// Why an image was not downloaded.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[error("{message}")]
pub struct DownloadFailed {
    /// Without the url, whose query may be a key.
    pub message: String,
    /// Whether it may go right the next time.
    pub is_retryable: bool,
}

/// The providers' downloads, with their common bounds.
#[derive(Debug)]
pub(super) struct Downloads {
    by_provider: BTreeMap<String, Arc<dyn Download>>,
    image_bytes_max: u64,
    slots: Semaphore,
}

/// What following a journal needs.
#[derive(Clone, Debug)]
pub(super) struct Follower {
    pub(super) input: Input,
    pub(super) gallery: Gallery,
    pub(super) downloads: Arc<Downloads>,
}

/// An image to fetch.
#[derive(Debug)]
struct Image {
    custom_id: String,
    number: usize,
    url: String,
    provider: String,
}

/// What a part of the journal holds.
#[derive(Debug, Default)]
struct Batch {
    images: Vec<Image>,
    /// Offset behind the part that was read.
    next: u64,
    /// Nothing durable lies behind it yet.
    at_end: bool,
}

impl Follower {
    /// Makes files of all images in the journal from offset `from` to its durable end, and returns the
    /// offset of that end. Images that can't be had are given up, and logged.
    pub(super) async fn follow(self, from: u64) -> Result<u64, Error> {
        let mut running = FuturesUnordered::new();
        let mut offset = from;
        loop {
            let reader = self.clone();
            let batch = blocking(self.input.at_work(), move |member| reader.read(offset, member)).await?;
            offset = batch.next;
            for image in batch.images {
                if running.len() >= DOWNLOADS_OF_JOB {
                    running.next().await.unwrap_or(Ok(()))?;
                }
                running.push(self.fetch(image));
            }
            if batch.at_end {
                break;
            }
        }
        while let Some(fetched) = running.next().await {
            fetched?;
        }
        Ok(offset)
    }

    /// Reads on in the journal: unpacks what stands in the records, and returns what must be fetched.
    fn read(&self, from: u64, member: &Arc<Member>) -> Result<Batch, Error> {
        let mut batch = Batch { at_end: true, ..Batch::default() };
        batch.next = self
            .input
            .journal(member)?
            .scan(from, |record, place| {
                let line = record.published();
                if may_hold_images(&line) && self.input.asks_for_images(record.index)? {
                    self.take(&line, record.index, &mut batch.images)?;
                }
                batch.at_end = batch.images.len() < BATCH_IMAGES && place.end - from < BATCH_BYTES;
                Ok(batch.at_end)
            })?
            .end;
        Ok(batch)
    }

    fn take(&self, line: &[u8], index: u32, images: &mut Vec<Image>) -> Result<(), Error> {
        let text = std::str::from_utf8(line).unwrap_or_default();
        let Some(answer) = Answer::read(text) else { return Ok(()) };
        for picture in answer.pictures {
            match picture.source {
                Source::Inline(base64) => {
                    self.gallery.unpack(&answer.custom_id, picture.number, &base64)?;
                }
                Source::Url(_) if self.gallery.find(&answer.custom_id, picture.number).is_some() => {}
                Source::Url(url) => images.push(Image {
                    custom_id: answer.custom_id.clone().into_owned(),
                    number: picture.number,
                    url: url.into_owned(),
                    provider: self.input.provider(index)?.unwrap_or_default().to_owned(),
                }),
            }
        }
        Ok(())
    }

    async fn fetch(&self, image: Image) -> Result<(), Error> {
        let Image { custom_id, number, url, provider } = image;
        let job = self.input.job().id;
        let fetched = self.downloads.fetch(&provider, &url).await;
        match fetched {
            Ok(bytes) => {
                let gallery = self.gallery.clone();
                let save = move |_: &_| gallery.save(&custom_id, number, &bytes);
                blocking(self.input.at_work(), save).await?;
            }
            Err(error) => {
                warn!(%job, custom_id, number, %error, "an image can't be downloaded; its url stays in the record");
            }
        }
        Ok(())
    }
}

impl Downloads {
    pub(super) fn new(by_provider: BTreeMap<String, Arc<dyn Download>>, image_bytes_max: u64) -> Self {
        Self { by_provider, image_bytes_max, slots: Semaphore::new(DOWNLOADS) }
    }

    /// Tries up to [`TRIES`] times.
    async fn fetch(&self, provider: &str, url: &str) -> Result<Bytes, DownloadFailed> {
        let Some(download) = self.by_provider.get(provider) else {
            let message = format!("provider `{provider}` is not configured any more");
            return Err(DownloadFailed { message, is_retryable: false });
        };
        let mut wait = FIRST_WAIT;
        for _ in 1..TRIES {
            match self.fetch_once(download.as_ref(), url).await {
                Err(error) if error.is_retryable => {
                    debug!(%error, "a download is tried again");
                    tokio::time::sleep(wait).await;
                    wait *= 4;
                }
                ended => return ended,
            }
        }
        self.fetch_once(download.as_ref(), url).await
    }

    async fn fetch_once(&self, download: &dyn Download, url: &str) -> Result<Bytes, DownloadFailed> {
        let _slot = self.slots.acquire().await.expect("the semaphore is never closed");
        whole(download.download(url, self.image_bytes_max).await)
    }
}

/// An empty file is no image.
fn whole(fetched: Result<Bytes, DownloadFailed>) -> Result<Bytes, DownloadFailed> {
    fetched.and_then(|bytes| {
        if bytes.is_empty() {
            Err(DownloadFailed { message: "the file is empty".to_owned(), is_retryable: true })
        } else {
            Ok(bytes)
        }
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Mutex;

    use futures_util::FutureExt as _;
    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::domain::Kind;
    use crate::output::fake::{FakeStore, job, record};
    use crate::output::folder::ResultsFolder;

    /// Answers each url from its list, the last one for ever; counts what is asked.
    #[derive(Debug, Default)]
    struct Server {
        answers: BTreeMap<String, Vec<Result<Bytes, DownloadFailed>>>,
        asked: Mutex<BTreeMap<String, usize>>,
    }

    impl Server {
        fn answer(mut self, url: &str, answers: Vec<Result<Bytes, DownloadFailed>>) -> Self {
            self.answers.insert(url.to_owned(), answers);
            self
        }

        fn asked(&self, url: &str) -> usize {
            self.asked.lock().unwrap().get(url).copied().unwrap_or(0)
        }
    }

    impl Download for Server {
        fn download<'a>(&'a self, url: &'a str, max: u64) -> BoxFuture<'a, Result<Bytes, DownloadFailed>> {
            assert_eq!(max, 1000);
            let mut asked = self.asked.lock().unwrap();
            let count = asked.entry(url.to_owned()).or_default();
            *count += 1;
            let answers = self.answers.get(url).expect("an unknown url was asked for");
            let answer = answers.get(*count - 1).or_else(|| answers.last()).unwrap().clone();
            std::future::ready(answer).boxed()
        }
    }

    fn failure(is_retryable: bool) -> Result<Bytes, DownloadFailed> {
        Err(DownloadFailed { message: "no".to_owned(), is_retryable })
    }

    const PNG: Result<Bytes, DownloadFailed> = Ok(Bytes::from_static(b"\x89PNG\r\n\x1a\n"));

    fn images(total: u32) -> Arc<FakeStore> {
        let store = FakeStore::new(job(total));
        store.change(|state| state.job.kind = Kind::Images);
        Arc::new(store)
    }

    fn named(store: &FakeStore, index: u32, url: &str) {
        store.append(&record(index, 200, &format!("{{\"data\":[{{\"url\":\"{url}\"}}]}}")));
    }

    struct World {
        root: tempfile::TempDir,
        store: Arc<FakeStore>,
        downloads: Arc<Downloads>,
    }

    impl World {
        fn new(store: &Arc<FakeStore>, server: Arc<dyn Download>) -> Self {
            let by_provider = BTreeMap::from([("openai".to_owned(), server)]);
            let downloads = Arc::new(Downloads::new(by_provider, 1000));
            Self { root: tempfile::tempdir().unwrap(), store: Arc::clone(store), downloads }
        }

        fn folder(&self) -> ResultsFolder {
            ResultsFolder::new(self.root.path(), &"news".parse().unwrap())
        }

        fn image(&self, name: &str) -> PathBuf {
            self.folder().images().join(name)
        }

        async fn follow(&self, from: u64) -> Result<u64, Error> {
            let job = self.store.state().job;
            let follower = Follower {
                input: Input::new(job, self.store.clone(), CancellationToken::new()),
                gallery: Gallery::new(&self.folder()),
                downloads: self.downloads.clone(),
            };
            follower.follow(from).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn images_are_fetched_once_whatever_was_followed_before() {
        let store = images(3);
        let server = Arc::new(Server::default().answer("http://a", vec![PNG]).answer("http://b", vec![PNG]));
        let world = World::new(&store, server.clone());
        named(&store, 1, "http://a");
        let offset = world.follow(0).await.unwrap();
        assert!(world.image("line-2-1.png").exists());
        named(&store, 0, "http://b");
        let end = world.follow(offset).await.unwrap();
        assert!(end > offset && world.image("line-1-1.png").exists());
        assert_eq!(world.follow(0).await.unwrap(), end, "as after a restart");
        assert_eq!((server.asked("http://a"), server.asked("http://b")), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_download_is_tried_three_times_with_growing_waits() {
        let store = images(2);
        let server = Server::default()
            .answer("http://late", vec![failure(true), Ok(Bytes::new()), PNG])
            .answer("http://never", vec![failure(true)]);
        let server = Arc::new(server);
        let world = World::new(&store, server.clone());
        named(&store, 0, "http://late");
        named(&store, 1, "http://never");
        let start = Instant::now();
        world.follow(0).await.unwrap();
        assert_eq!(start.elapsed(), FIRST_WAIT * 5);
        assert!(world.image("line-1-1.png").exists() && !world.image("line-2-1.png").exists());
        assert_eq!((server.asked("http://late"), server.asked("http://never")), (3, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_gone_for_good_is_asked_for_once() {
        let store = images(1);
        let server = Arc::new(Server::default().answer("http://gone", vec![failure(false)]));
        let world = World::new(&store, server.clone());
        named(&store, 0, "http://gone");
        world.follow(0).await.unwrap();
        assert_eq!(server.asked("http://gone"), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn images_in_records_become_files_on_the_way() {
        let store = images(1);
        let world = World::new(&store, Arc::new(Server::default()));
        store.append(&record(0, 200, "{\"data\":[{\"b64_json\":\"R0lGODlh\"}]}"));
        world.follow(0).await.unwrap();
        assert_eq!(std::fs::read(world.image("line-1-1.gif")).unwrap(), b"GIF89a");
    }

    /// Holds every download until it is let go, and counts how many are held.
    #[derive(Debug)]
    struct Gate {
        begun: Semaphore,
        open: Semaphore,
    }

    impl Download for Gate {
        fn download<'a>(&'a self, _: &'a str, _: u64) -> BoxFuture<'a, Result<Bytes, DownloadFailed>> {
            async {
                self.begun.add_permits(1);
                self.open.acquire().await.unwrap().forget();
                PNG
            }
            .boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn downloads_are_bounded_for_a_job_and_for_all() {
        let count = 3 * u32::try_from(BATCH_IMAGES).unwrap() + 1;
        let store = images(count);
        (0..count).for_each(|index| named(&store, index, "http://a"));
        let gate = Arc::new(Gate { begun: Semaphore::new(0), open: Semaphore::new(0) });
        let world = World::new(&store, gate.clone());
        let others: [World; 2] = std::array::from_fn(|_| World {
            root: tempfile::tempdir().unwrap(),
            store: Arc::clone(&store),
            downloads: Arc::clone(&world.downloads),
        });
        let watch = async {
            // Time moves only when every download that may run is held.
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(gate.begun.available_permits(), DOWNLOADS_OF_JOB);
        };
        let rest = async {
            watch.await;
            let watch = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert_eq!(gate.begun.available_permits(), DOWNLOADS);
                gate.open.add_permits(3 * count as usize);
            };
            tokio::join!(others[0].follow(0), others[1].follow(0), watch)
        };
        let (first, (second, third, ())) = tokio::join!(world.follow(0), rest);
        for followed in [first, second, third] {
            followed.unwrap();
        }
        for world in [&world, &others[0], &others[1]] {
            assert_eq!(std::fs::read_dir(world.folder().images()).unwrap().count(), count as usize);
        }
    }
}
