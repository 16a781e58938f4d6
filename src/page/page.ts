// What every part of the page can use: the state, and what a person can do.

import { createContext } from "preact";
import { useContext } from "preact/hooks";
import type { Actions } from "./actions.js";
import type { State } from "./state.js";

export interface PageContext {
  state: State;
  actions: Actions;
  /** The domain that all masters share. Lists leave it out. */
  domain: string;
}

const Context = createContext<PageContext | undefined>(undefined);
export const PageProvider = Context.Provider;

export function usePage(): PageContext {
  const page = useContext(Context);
  if (page === undefined) throw new Error("outside of the page");
  return page;
}
