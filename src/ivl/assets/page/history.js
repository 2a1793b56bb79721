// Conversations, kept in this browser (IndexedDB): {id, title, updated, messages}.

const NAME = "ivl";
const STORE = "chats";
const MOST = 100;

function open() {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open(NAME, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id" });
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
}

async function run(mode, work) {
  const database = await open();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction(STORE, mode);
      const request = work(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}

export async function all() {
  const chats = await run("readonly", (store) => store.getAll());
  return chats.sort((a, b) => b.updated - a.updated);
}

export async function save(chat) {
  await run("readwrite", (store) => store.put(chat));
  for (const old of (await all()).slice(MOST)) await remove(old.id);
}

export function remove(id) {
  return run("readwrite", (store) => store.delete(id));
}
