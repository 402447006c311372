# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two named tasks: one reads documents into a full-text index, the other finds them.

bgtaskctl call docindex '"/usr/share/doc/bgtaskd/copyright"'
bgtaskctl call docsearch '"GNU AND license"'
"""

import os
import sqlite3
from pathlib import Path

import bgtaskd

FIND = """SELECT path, snippet(texts, 0, '[', ']', '…', 8) FROM texts JOIN paths ON id = texts.rowid
WHERE texts MATCH ? ORDER BY rank LIMIT 10"""


class _Index:
    def setup(self):
        self.db = sqlite3.connect(os.environ["INDEX"], timeout=30)
        self.db.execute("CREATE TABLE IF NOT EXISTS paths (id INTEGER PRIMARY KEY, path UNIQUE)")
        self.db.execute("CREATE VIRTUAL TABLE IF NOT EXISTS texts USING fts5(text)")


class DocIndex(_Index, bgtaskd.AsyncTask):
    def work(self, path, context):
        """Take in a document, or what has become of it. Done twice, it changes nothing."""
        text = Path(path).read_text(errors="replace")
        with self.db:
            self.db.execute("INSERT OR IGNORE INTO paths (path) VALUES (?)", (path,))
            (number,) = self.db.execute("SELECT id FROM paths WHERE path = ?", (path,)).fetchone()
            self.db.execute("REPLACE INTO texts (rowid, text) VALUES (?, ?)", (number, text))


class DocSearch(_Index, bgtaskd.SyncTask):
    def work(self, words, context):
        """The ten best, each with some words around those that were found."""
        return self.db.execute(FIND, (words,)).fetchall()
