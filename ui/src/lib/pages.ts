// The pages of the studio. A new page is one file in pages/ and one line here.

import type { Component } from "svelte";
import Chat from "../pages/Chat.svelte";
import type { IconName } from "../parts/Icon.svelte";
import type { Word } from "./words";

export type Page = { path: string; title: Word; icon: IconName; component: Component };

export const pages: Page[] = [{ path: "chat", title: "chat", icon: "chat", component: Chat }];

/** The page that the address names after `#/`; the first one when it names none. */
export function pageOf(hash: string): Page {
  return pages.find((page) => hash === `#/${page.path}`) ?? pages[0]!;
}
