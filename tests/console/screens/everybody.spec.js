// Each page is for everybody: with a screen reader, by keyboard, without scripts, in light and dark, on a narrow screen.
import AxeBuilder from '@axe-core/playwright';
import { test, expect, PAGES } from '../console_page.js';

for (const colorScheme of ['light', 'dark']) {
  test.describe(`in ${colorScheme}`, () => {
    test.use({ colorScheme });
    for (const [path, heading] of PAGES) {
      test(`axe finds nothing on ${path}`, async ({ page }) => {
        await page.goto(path);
        await expect(page.getByRole('heading', { level: 1 })).toHaveCount(1);
        await expect(page.getByRole('heading', { level: 1 })).toContainText(heading);
        const found = await new AxeBuilder({ page }).analyze();
        expect(found.violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(' ')}`)).toEqual([]);
      });
    }
  });
}

for (const width of [320, 768, 1920]) {
  test.describe(`at ${width} pixels`, () => {
    test.use({ viewport: { width, height: 800 } });
    for (const [path] of PAGES) {
      test(`${path} does not scroll sideways`, async ({ page }) => {
        await page.goto(path);
        const size = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
        expect(size[0]).toBeLessThanOrEqual(size[1]);
      });
    }
  });
}

test.describe('without scripts', () => {
  test.use({ javaScriptEnabled: false });
  for (const [path, heading] of PAGES) {
    test(`${path} is complete`, async ({ page }) => {
      await page.goto(path);
      await expect(page.getByRole('heading', { level: 1 })).toContainText(heading);
      await expect(page.getByRole('navigation').getByRole('link', { name: 'Pipeline' })).toBeVisible();
      await expect(page.locator('main')).not.toBeEmpty();
    });
  }
});

test('the first Tab leads past the navigation', async ({ page }) => {
  await page.goto('/');
  await page.keyboard.press('Tab');
  const skip = page.getByRole('link', { name: /skip to/i });
  await expect(skip).toBeFocused();
  await page.keyboard.press('Enter');
  await expect(page.locator('main')).toBeFocused();
});

test('a page with all that it loads has at most 100 kB, compressed', async ({ page, context }) => {
  const browser = await context.newCDPSession(page);
  await browser.send('Network.enable');
  await browser.send('Network.setCacheDisabled', { cacheDisabled: true });
  let bytes = 0;
  browser.on('Network.loadingFinished', ({ encodedDataLength }) => {
    bytes += encodedDataLength;
  });
  for (const [path] of PAGES) {
    bytes = 0;
    await page.goto(path, { waitUntil: 'load' });
    await expect.poll(() => bytes, path).toBeGreaterThan(1000);
    expect(bytes, `${path} in bytes`).toBeLessThanOrEqual(100_000);
  }
});
