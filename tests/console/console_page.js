// The page of every test, and what holds on every page: no request to another origin, no error in the browser's console, no error of a script.
import { test as base, expect } from '@playwright/test';

export const test = base.extend({
  // A test that asks for an error, such as a wrong token, names what the browser says of it.
  expectedComplaint: [null, { option: true }],
  page: async ({ page, baseURL, expectedComplaint }, use) => {
    const complaints = [];
    const own = new URL(baseURL).origin;
    page.on('console', (message) => {
      const isComplaint = ['error', 'warning'].includes(message.type());
      if (isComplaint && !(expectedComplaint && message.text().includes(expectedComplaint))) complaints.push(message.text());
    });
    page.on('pageerror', (error) => complaints.push(`a script failed: ${error.message}`));
    page.on('request', (request) => {
      const url = new URL(request.url());
      if (url.protocol !== 'data:' && url.origin !== own) complaints.push(`a foreign request: ${url}`);
    });
    await use(page);
    expect(complaints, 'complaints of the browser').toEqual([]);
  },
});

export { expect };

// Every page that a person reaches, with the words of its heading.
export const PAGES = [
  ['/', 'Pipeline'],
  ['/events', 'Events'],
  ['/trace', 'Trace'],
  ['/groups', 'Groups'],
  ['/slots', 'Slots'],
  ['/views', 'Views'],
  ['/views/user_view', 'user_view'],
  ['/letters', 'Dead letters'],
  ['/audit', 'Audit'],
  ['/login', 'Log in'],
];

export async function logIn(page) {
  await page.goto('/login');
  await page.getByLabel('Token').fill(process.env.CONSOLE_TOKEN);
  await page.getByRole('button', { name: 'Log in' }).click();
  await expect(page.getByRole('button', { name: 'Log out' })).toBeVisible();
}

// Presses Tab until `target` has the focus, as somebody without a mouse does.
export async function tabTo(page, target, presses = 80) {
  await expect(target).toBeVisible();
  for (let count = 0; count < presses; count += 1) {
    if (await target.evaluate((element) => element === document.activeElement)) return;
    await page.keyboard.press('Tab');
  }
  throw new Error(`${target} does not get the focus within ${presses} presses of Tab`);
}
